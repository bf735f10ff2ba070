// Finds the files that the modules of a filter import.
import { realpathSync, statSync } from "node:fs";
import { builtinModules } from "node:module";
import path from "node:path";

// Ends with one line about a place in the author's file.
export function fail(place, message) {
  console.error(`${place}: ${message}`);
  process.exit(1);
}

const about = (file) => statSync(file, { throwIfNoEntry: false });

// The package of a name such as `@scope/package/file`.
export function packageOf(name) {
  return name.split("/").slice(0, name.startsWith("@") ? 2 : 1).join("/");
}

// The file below `root` that the module `from` imports by this name. The result is null for an interface of the
// contract and for a package. `ends` are tried one after the other.
export function resolve(root, from, line, name, ends) {
  const place = `${from}:${line}`;
  if (/^(rbdkit|wasi):/.test(name)) return null;
  if (!/^\.{0,2}\//.test(name)) {
    if (name.startsWith("node:") || builtinModules.includes(name)) {
      fail(place, `imports ${name}, a part of Node.js that a filter does not have`);
    }
    if (!about(path.join("node_modules", packageOf(name)))) {
      fail(place, `imports ${name}, which is not in node_modules: npm install ${packageOf(name)}`);
    }
    return null;
  }
  const wanted = path.resolve(root, path.dirname(from), name);
  const file = ends.flatMap((end) => end(wanted)).find((file) => about(file)?.isFile());
  // A link may lead out of the project.
  const leaves = (file, root) => /^(\.\.)?(\/|$)/.test(path.relative(root, file));
  if (name.startsWith("/") || leaves(wanted, root) || (file && leaves(realpathSync(file), realpathSync(root)))) {
    fail(place, `imports ${name}, which is outside of the project: a filter can import only files of its project`);
  }
  if (!file) fail(place, `imports ${name}, which does not exist`);
  if (file.endsWith(".json")) fail(place, `imports ${name}: a filter can import only modules, not JSON`);
  return path.relative(root, file);
}
