// Prints, as JSON, what the modules of a filter implement. `implemented` is what its first module exports:
// {"reads": {"pread": {"file": "filter.js", "line": 7, "async": false}}, ...}. An object whose functions are not
// written out in the project is null. `elsewhere` lists objects of the same kind that the first module does not
// export.
import { readFileSync } from "node:fs";
import path from "node:path";
import { parse } from "acorn";
import { fail, resolve } from "./modules.mjs";

const [root, entry] = process.argv.slice(2);
const ENDS = ["", ".js", ".mjs", "/index.js"].map((end) => (file) => file + end);

// The modules by their files. Each has the values of its own names, what it imports and what it exports.
const modules = new Map();

function parsed(file) {
  try {
    const text = readFileSync(path.join(root, file), "utf8");
    return parse(text, { ecmaVersion: "latest", sourceType: "module", locations: true });
  } catch (error) {
    const { line, column } = error.loc ?? { line: 1, column: 0 };
    return fail(`${file}:${line}:${column + 1}`, error.message.replace(/ \(\d+:\d+\)$/, ""));
  }
}

// `import()` would look for the file when the filter runs, and then there are no files.
function refuseLateImports(file, node) {
  if (Array.isArray(node)) return node.forEach((part) => refuseLateImports(file, part));
  if (typeof node?.type !== "string") return;
  if (node.type === "ImportExpression") {
    fail(`${file}:${node.loc.start.line}`, "import() finds no files when the filter runs: write import at the top");
  }
  Object.values(node).forEach((part) => refuseLateImports(file, part));
}

const nameOf = (node) => node.name ?? node.value;

function load(file) {
  if (modules.has(file)) return;
  const module = { values: new Map(), imports: new Map(), exports: new Map(), stars: [] };
  modules.set(file, module);
  const tree = parsed(file);
  refuseLateImports(file, tree.body);
  for (const statement of tree.body) {
    const line = statement.loc.start.line;
    const target = statement.source ? resolve(root, file, line, statement.source.value, ENDS) : undefined;
    if (target) load(target);
    const specifiers = statement.specifiers ?? [];
    const declaration = statement.type === "ExportNamedDeclaration" ? statement.declaration : statement;
    for (const [name, value] of declared(declaration)) {
      module.values.set(name, value);
      if (declaration !== statement) module.exports.set(name, { local: name });
    }
    if (statement.type === "ImportDeclaration") {
      for (const { type, local, imported } of specifiers) {
        const name = { ImportNamespaceSpecifier: "*", ImportDefaultSpecifier: "default" }[type] ?? nameOf(imported);
        module.imports.set(local.name, { file: target, name, line });
      }
    } else if (statement.type === "ExportNamedDeclaration") {
      for (const { local, exported } of specifiers) {
        const from = statement.source ? { file: target, name: nameOf(local), line } : { local: local.name };
        module.exports.set(nameOf(exported), from);
      }
    } else if (statement.type === "ExportAllDeclaration") {
      if (statement.exported) module.exports.set(nameOf(statement.exported), { file: target, name: "*", line });
      else module.stars.push(target);
    } else if (statement.type === "ExportDefaultDeclaration") {
      module.values.set("default", statement.declaration);
      module.exports.set("default", { local: "default" });
    }
  }
}

// The names that a statement declares, with their values. The values of a pattern are not known.
function declared(node) {
  if (node?.id && /^(Function|Class)Declaration$/.test(node.type)) return [[node.id.name, node]];
  if (node?.type !== "VariableDeclaration") return [];
  return node.declarations.flatMap(({ id, init }) => (id.type === "Identifier" ? [[id.name, init]] : namesIn(id)));
}

function namesIn(pattern) {
  if (pattern?.type === "Identifier") return [[pattern.name, null]];
  const parts = pattern?.properties ?? pattern?.elements ?? [pattern?.value ?? pattern?.argument ?? pattern?.left];
  return pattern ? parts.flatMap(namesIn) : [];
}

// What a name that a module exports stands for: {file, node}, {namespace: file}, null if that is not known, and
// undefined if the module has no such export.
function exported(file, name, steps = 0) {
  const module = modules.get(file);
  const found = module.exports.get(name);
  if (steps > 100) return null;
  if (found?.local) return valueOf(file, { type: "Identifier", name: found.local }, steps + 1);
  if (found) return imported(found, steps);
  for (const star of name === "default" ? [] : module.stars) {
    const through = star === null ? null : exported(star, name, steps + 1);
    if (through !== undefined) return through;
  }
  return undefined;
}

function imported({ file, name }, steps) {
  if (file === null) return null;
  return name === "*" ? { namespace: file } : exported(file, name, steps + 1);
}

function valueOf(file, node, steps = 0) {
  const module = modules.get(file);
  if (node?.type !== "Identifier") return node ? { file, node } : null;
  if (steps > 100) return null;
  if (module.values.has(node.name)) return valueOf(file, module.values.get(node.name), steps + 1);
  return module.imports.has(node.name) ? (imported(module.imports.get(node.name), steps) ?? null) : null;
}

function exportsOf(file, seen = new Set()) {
  if (file === null || seen.has(file)) return [];
  seen.add(file);
  const module = modules.get(file);
  return [...module.exports.keys(), ...module.stars.flatMap((star) => exportsOf(star, seen))];
}

const isAsync = (value) => /Function/.test(value?.node?.type ?? "") && value.node.async;
const place = ({ file, node }) => ({ file, line: node.loc.start.line });

function functionsOf(value) {
  const functions = {};
  if (value?.namespace) {
    for (const name of exportsOf(value.namespace)) {
      const one = exported(value.namespace, name);
      functions[name] = { ...(one?.node ? place(one) : { file: value.namespace, line: 1 }), async: isAsync(one) };
    }
    return functions;
  }
  if (value?.node?.type !== "ObjectExpression") return null;
  for (const property of value.node.properties) {
    if (property.type !== "Property" || property.computed) return null;
    const one = valueOf(value.file, property.value);
    const written = property.value.type === "Identifier" && one?.node ? one : { file: value.file, node: property };
    functions[nameOf(property.key)] = { ...place(written), async: isAsync(one) };
  }
  return functions;
}

// The fields that `describe` returns, if they are written out.
function description() {
  const filter = exported(entry, "filter");
  const describe = filter?.node?.properties?.find(({ key }) => key && nameOf(key) === "describe");
  const body = valueOf(filter?.file, describe?.value)?.node?.body;
  const answer = body?.body ? body.body.find(({ type }) => type === "ReturnStatement")?.argument : body;
  if (answer?.type !== "ObjectExpression") return null;
  if (answer.properties.some(({ type, computed }) => type !== "Property" || computed)) return null;
  return { ...place({ file: filter.file, node: describe }), fields: answer.properties.map(({ key }) => nameOf(key)) };
}

load(entry);
for (const [file, module] of modules) {
  for (const { file: from, name, line } of [...module.imports.values(), ...module.exports.values()]) {
    if (from && name !== "*" && exported(from, name) === undefined) {
      fail(`${file}:${line}`, `imports ${name}, which ${from} does not export`);
    }
  }
}
const implemented = Object.fromEntries(exportsOf(entry).map((name) => [name, functionsOf(exported(entry, name))]));
const elsewhere = [];
for (const [file, module] of modules) {
  for (const [name, node] of module.values) {
    const functions = name in implemented ? null : functionsOf(valueOf(file, node));
    if (functions) elsewhere.push({ file, line: node.loc.start.line, name, functions: Object.keys(functions) });
  }
}
console.log(JSON.stringify({ implemented, elsewhere, describe: description() }));
