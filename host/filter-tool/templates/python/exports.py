# Prints, as JSON, what the modules of a filter implement. `implemented` has the classes of its first module:
# {"reads": {"pread": {"file": "filter.py", "line": 52, "async": false}}, ...}. A class is null if it, or a class that
# it inherits from, is made outside of the project: its functions are not known. `elsewhere` lists classes of the other
# modules whose names the first one does not have.
import ast
import json
import os
import sys

# What a name stands for: the functions of a class, a module of the project, or one of these.
DECLARED = {}  # by the bindings, which implement nothing
UNKNOWN = None

modules = {}  # by their files


class Module:
    def __init__(self, path):
        self.path = path
        self.names = {"object": DECLARED}
        self.lines = {}


def load(path):
    """The module in a file of the project."""
    if path in modules:
        return modules[path]
    module = modules[path] = Module(path)
    with open(path, encoding="utf-8") as file:
        source = file.read()
    try:
        tree = ast.parse(source, path)
    except SyntaxError as error:
        sys.exit(f"{path}:{error.lineno}:{error.offset}: {error.msg}")
    bind(tree.body, module)
    return module


def found(directory, name):
    """The module of this dotted name below a directory, if the project has it."""
    place = os.path.join(directory, *name.split(".")) if name else directory
    for path in (f"{place}.py", os.path.join(place, "__init__.py")):
        path = os.path.normpath(path)
        if os.path.isfile(path) and not path.startswith(".."):
            return load(path)
    return UNKNOWN


def member(thing, name):
    """What an attribute of a thing stands for."""
    if thing is DECLARED:
        return DECLARED
    if not isinstance(thing, Module):
        return UNKNOWN
    if name in thing.names:
        return thing.names[name]
    is_package = os.path.basename(thing.path) == "__init__.py"
    return found(os.path.dirname(thing.path), name) if is_package else UNKNOWN


def imported(module, name, level):
    """The module that `from` names, with dots in front of it for a package of the module."""
    if level == 0:
        return DECLARED if name.split(".")[0] == "wit_world" else found("", name)
    directory = os.path.dirname(module.path)
    for _ in range(level - 1):
        directory = os.path.dirname(directory)
    return found(directory, name)


def bind(statements, module):
    """Enters the names that statements at the top of a file bind, in their order."""
    names = module.names
    for statement in statements:
        if isinstance(statement, ast.ClassDef):
            names[statement.name] = functions(statement, module)
            module.lines[statement.name] = statement.lineno
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                whole = imported(module, alias.name, 0)
                first = imported(module, alias.name.split(".")[0], 0)
                names[alias.asname or alias.name.split(".")[0]] = whole if alias.asname else first
        elif isinstance(statement, ast.ImportFrom):
            origin = imported(module, statement.module or "", statement.level)
            for alias in statement.names:
                if alias.name == "*":
                    every = origin.names if isinstance(origin, Module) else {}
                    names.update({name: about for name, about in every.items() if not name.startswith("_")})
                else:
                    names[alias.asname or alias.name] = member(origin, alias.name)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    names[target.id] = value(statement.value, module)
        else:
            for part in ("body", "orelse", "finalbody"):
                if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    bind(getattr(statement, part, []), module)


def value(expression, module):
    """What an expression stands for: `Name`, or `module.Name`."""
    if isinstance(expression, ast.Attribute):
        return member(value(expression.value, module), expression.attr)
    return module.names.get(expression.id, UNKNOWN) if isinstance(expression, ast.Name) else UNKNOWN


def functions(definition, module):
    """The functions of a class, with those that it inherits."""
    all = {}
    for base in reversed(definition.bases):
        inherited = value(base, module)
        if inherited is UNKNOWN or isinstance(inherited, Module):
            return UNKNOWN
        all.update(inherited)
    for part in definition.body:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            is_async = isinstance(part, ast.AsyncFunctionDef)
            all[part.name.replace("_", "-")] = {"file": module.path, "line": part.lineno, "async": is_async}
    return all


first = load(sys.argv[1])
# The class of an interface has the interface's name with a capital letter.
implemented = {
    name.lower(): None if isinstance(about, Module) else about
    for name, about in first.names.items()
    if name == name.capitalize()
}
elsewhere = [
    {"file": module.path, "line": line, "name": name.lower(), "functions": list(module.names[name] or [])}
    for module in modules.values()
    for name, line in module.lines.items()
    if name == name.capitalize() and name not in first.names
]
print(json.dumps({"implemented": implemented, "elsewhere": elsewhere}))
