# Prints, as JSON, what a filter's source implements: {"reads": {"pread": {"line": 52, "async": false}}, ...}.
import ast
import json
import sys

path = sys.argv[1]
with open(path, encoding="utf-8") as file:
    source = file.read()
try:
    tree = ast.parse(source, path)
except SyntaxError as error:
    sys.exit(f"{path}:{error.lineno}:{error.offset}: {error.msg}")

found = {}
for statement in tree.body:
    if not isinstance(statement, ast.ClassDef):
        continue
    functions = {
        member.name.replace("_", "-"): {"line": member.lineno, "async": isinstance(member, ast.AsyncFunctionDef)}
        for member in statement.body
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    found[statement.name.lower()] = functions
print(json.dumps(found))
