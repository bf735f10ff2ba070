// Prints a TypeScript file with spaces in place of its types. What cannot be taken out so (an enum, a namespace with code)
// is an error.
import { readFileSync } from "node:fs";
import ts from "typescript";
import { blankSourceFile } from "ts-blank-space";

const [file] = process.argv.slice(2);
const text = readFileSync(file, "utf8");
const source = ts.createSourceFile(file, text, { languageVersion: ts.ScriptTarget.ESNext }, false, ts.ScriptKind.TS);
const wrong = [];
const plain = blankSourceFile(source, (node) => wrong.push(node));
for (const node of wrong) {
  const { line, character } = source.getLineAndCharacterOfPosition(node.getStart(source));
  console.error(`${file}:${line + 1}:${character + 1}: only types may be TypeScript's own here: no enum, no namespace`);
}
if (wrong.length > 0) process.exit(1);
process.stdout.write(plain);
