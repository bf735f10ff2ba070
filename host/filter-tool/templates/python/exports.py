# Prints, as JSON, what a filter's source implements: {"reads": {"pread": {"line": 52, "async": false}}, ...}. A class
# is null if it, or a class that it inherits from, is made elsewhere: its functions are not known.
import ast
import json
import sys

# What a name stands for: the functions of a class, or one of these.
DECLARED = {}  # by the bindings, which implement nothing
UNKNOWN = None


def bind(statements):
    """Enters the names that statements at the top of the file bind, in their order."""
    for statement in statements:
        if isinstance(statement, ast.ClassDef):
            names[statement.name] = functions(statement)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                module = getattr(statement, "module", None) or alias.name
                declared = module.split(".")[0] == "wit_world"
                names[alias.asname or alias.name.split(".")[0]] = DECLARED if declared else UNKNOWN
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    names[target.id] = value(statement.value)
        else:
            for part in ("body", "orelse", "finalbody"):
                if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    bind(getattr(statement, part, []))


def value(expression):
    """What an expression stands for: `Name`, or `module.Name` of the bindings."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
        if isinstance(expression, ast.Name) and names.get(expression.id, UNKNOWN) is not DECLARED:
            return UNKNOWN
    return names.get(expression.id, UNKNOWN) if isinstance(expression, ast.Name) else UNKNOWN


def functions(definition):
    """The functions of a class, with those that it inherits."""
    found = {}
    for inherited in map(value, reversed(definition.bases)):
        if inherited is UNKNOWN:
            return UNKNOWN
        found.update(inherited)
    for member in definition.body:
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
            about = {"line": member.lineno, "async": isinstance(member, ast.AsyncFunctionDef)}
            found[member.name.replace("_", "-")] = about
    return found


path = sys.argv[1]
with open(path, encoding="utf-8") as file:
    source = file.read()
try:
    tree = ast.parse(source, path)
except SyntaxError as error:
    sys.exit(f"{path}:{error.lineno}:{error.offset}: {error.msg}")
names = {"object": DECLARED}
bind(tree.body)
# The class of an interface has the interface's name with a capital letter.
found = {name.lower(): about for name, about in names.items() if name == name.capitalize()}
print(json.dumps(found))
