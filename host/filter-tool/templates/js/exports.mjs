// Prints, as JSON, what a filter's source exports: {"reads": {"pread": {"line": 7, "async": false}}, ...}. An object whose
// functions are not written out in the source is null.
import { readFileSync } from "node:fs";
import { parse } from "acorn";

const [file, shown] = process.argv.slice(2);
let tree;
try {
  tree = parse(readFileSync(file, "utf8"), { ecmaVersion: "latest", sourceType: "module", locations: true });
} catch (error) {
  const { line, column } = error.loc ?? { line: 1, column: 0 };
  console.error(`${shown}:${line}:${column + 1}: ${error.message.replace(/ \(\d+:\d+\)$/, "")}`);
  process.exit(1);
}

// The values of the file's own constants, by name.
const values = new Map();
for (const statement of tree.body) {
  const declaration = statement.type === "ExportNamedDeclaration" ? statement.declaration : statement;
  if (declaration?.type === "VariableDeclaration") {
    for (const { id, init } of declaration.declarations) if (id.type === "Identifier") values.set(id.name, init);
  } else if (declaration?.id && /^(Function|Class)Declaration$/.test(declaration.type)) {
    values.set(declaration.id.name, declaration);
  }
}

const isFunction = (node) => /Function/.test(node?.type ?? "");

function resolve(node) {
  for (let step = 0; node?.type === "Identifier" && values.has(node.name) && step < 100; step++) node = values.get(node.name);
  return node;
}

function functionsOf(node) {
  const object = resolve(node);
  if (object?.type !== "ObjectExpression") return null;
  const functions = {};
  for (const property of object.properties) {
    if (property.type !== "Property" || property.computed) return null;
    const value = resolve(property.value);
    functions[property.key.name ?? property.key.value] = {
      line: property.loc.start.line,
      async: isFunction(value) && value.async,
    };
  }
  return functions;
}

const exports = {};
for (const statement of tree.body) {
  if (statement.type !== "ExportNamedDeclaration") continue;
  for (const { id } of statement.declaration?.declarations ?? []) {
    if (id.type === "Identifier") exports[id.name] = functionsOf(id);
  }
  for (const { local, exported } of statement.specifiers) exports[exported.name ?? exported.value] = functionsOf(local);
}
console.log(JSON.stringify(exports));
