// Writes the modules of a filter into a directory, with spaces in place of their types. What cannot be taken out so (an
// enum, a namespace with code) is an error.
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import ts from "typescript";
import { blankSourceFile } from "ts-blank-space";
import { fail, packageOf, resolve } from "./modules.mjs";

const [entry, into] = process.argv.slice(2);
// As the compiler of TypeScript does it: `./x.js` may stand for x.ts.
const ENDS = [
  (file) => (file.endsWith(".js") ? [`${file.slice(0, -3)}.ts`] : []),
  ...["", ".ts", ".js", "/index.ts", "/index.js"].map((end) => (file) => file + end),
];
const written = new Set();
const packages = new Set();

function write(file) {
  if (written.has(file)) return;
  written.add(file);
  const text = readFileSync(file, "utf8");
  const kind = file.endsWith(".ts") ? ts.ScriptKind.TS : ts.ScriptKind.JS;
  const source = ts.createSourceFile(file, text, { languageVersion: ts.ScriptTarget.ESNext }, false, kind);
  const wrong = [];
  let plain = kind === ts.ScriptKind.TS ? blankSourceFile(source, (node) => wrong.push(node)) : text;
  for (const node of wrong) {
    const { line, character } = source.getLineAndCharacterOfPosition(node.getStart(source));
    const place = `${file}:${line + 1}:${character + 1}`;
    console.error(`${place}: only types may be TypeScript's own here: no enum, no namespace`);
  }
  if (wrong.length > 0) process.exit(1);
  // The last one first, so that the places of the others stay.
  for (const statement of [...source.statements].reverse()) {
    const name = statement.moduleSpecifier;
    if (!name || statement.isTypeOnly || statement.importClause?.isTypeOnly) continue;
    const line = source.getLineAndCharacterOfPosition(statement.getStart(source)).line + 1;
    const target = resolve(".", file, line, name.text, ENDS);
    if (target === null) {
      if (!/^(rbdkit|wasi):/.test(name.text)) copyPackage(packageOf(name.text));
      continue;
    }
    write(target);
    const shown = path.posix.relative(path.dirname(file), target);
    const found = JSON.stringify(shown.startsWith(".") ? shown : `./${shown}`);
    plain = plain.slice(0, name.getStart(source)) + found + plain.slice(name.end);
  }
  const to = path.join(into, file);
  mkdirSync(path.dirname(to), { recursive: true });
  writeFileSync(to, plain);
}

// The engine reads only what is below the directory.
function copyPackage(name) {
  const from = path.join("node_modules", name);
  if (packages.has(name)) return;
  packages.add(name);
  try {
    cpSync(from, path.join(into, from), { recursive: true, dereference: true });
    const { dependencies = {} } = JSON.parse(readFileSync(path.join(from, "package.json"), "utf8"));
    Object.keys(dependencies).forEach(copyPackage);
  } catch (error) {
    fail(from, error.message);
  }
}

rmSync(into, { recursive: true, force: true });
write(entry);
