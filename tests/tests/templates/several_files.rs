//! Projects with more than one source file: all of them run, and the log names the author's own
//! file and line.

use rbdkit_tests::{Launch, nbdsh};

use super::componentize_py;
use super::project::Project;

/// Builds and serves. The log has these texts after a read at 4096 that throws, and what was
/// written is read back.
fn works(project: &Project, log: &[&str]) {
    project.build();
    let server = Launch::new(["--wasm-filter"]).arg(project.component()).args(["memory", "1M"]).start();
    let script = "h.connect_uri(uri)\nh.pwrite(b'a' * 512, 512)\nprint(h.pread(512, 512) == b'a' * 512)\n\
                  try:\n    h.pread(512, 4096)\nexcept nbd.Error as error:\n    print(error.errno)";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "True\nEIO\n");
    let said = server.stop().stderr;
    for text in log {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
}

fn write(project: &Project, file: &str, text: &str) {
    let path = project.dir.join(file);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("the directory");
    std::fs::write(path, text).expect("a source");
}

#[test]
fn javascript() {
    let project = Project::new("js", &[]);
    project.edit("filter.js", "import * as next", "import { odd } from \"./lib/odd.js\";\nimport * as next");
    project.edit("filter.js", "    next.pread(offset", "    odd(offset);\n    next.pread(offset");
    project.edit("filter.js", "export const writes = {", "export { writes } from \"./lib\";\nconst unused = {");
    write(
        &project,
        "lib/odd.js",
        "import { ODD } from \"mine-numbers\";\n\nexport function odd(offset) {\n  if (offset === ODD) throw new \
         Error(\"it is odd\");\n}\n",
    );
    write(
        &project,
        "lib/index.js",
        "import * as next from \"rbdkit:filter/next@0.1.0\";\nimport * as buffer from \"rbdkit:filter/buffer@0.1.0\";\n\
         export const writes = {\n  pwrite(offset, length, flags) {\n    buffer.xor(0, 0, length, new \
         Uint8Array([255]), 0);\n    next.pwrite(offset, length, 0, 0, flags);\n  },\n};\n",
    );
    // npm has to have installed its own packages before one is added by hand.
    let error = project.fails_to_build();
    assert!(
        error.contains("lib/odd.js:1: imports mine-numbers, which is not in node_modules: npm install mine-numbers"),
        "{error}"
    );
    write(&project, "node_modules/mine-numbers/package.json", "{\"name\": \"mine-numbers\", \"main\": \"main.js\"}");
    write(&project, "node_modules/mine-numbers/main.js", "export const ODD = 4096;\n");
    works(&project, &["it is odd", "/lib/odd.js:4:", "/filter.js:"]);
}

#[test]
fn typescript() {
    let project = Project::new("ts", &[]);
    project.edit("filter.ts", "import * as next", "import { odd } from \"./lib/odd\";\nimport * as next");
    project.edit("filter.ts", "    next.pread(offset", "    odd(offset);\n    next.pread(offset");
    write(
        &project,
        "lib/odd.ts",
        "import type { Numbers } from \"./numbers.ts\";\nimport { numbers } from \"./numbers.js\";\n\n\
         export function odd(offset: number): void {\n  const all: Numbers = numbers;\n  if (offset === all.odd) throw \
         new Error(\"it is odd\");\n}\n",
    );
    write(
        &project,
        "lib/numbers.ts",
        "export interface Numbers {\n  odd: number;\n}\nexport const numbers: Numbers = { odd: 4096 };\n",
    );
    works(&project, &["it is odd", "/lib/odd.ts:6:", "/filter.ts:"]);
}

#[test]
fn python() {
    let project = Project::new("python", &[componentize_py()]);
    project.edit(
        "filter.py",
        "from wit_world import exports\n",
        "from ops.reading import Base\nfrom wit_world import exports\n",
    );
    project.edit(
        "filter.py",
        "class Reads(exports.Reads):",
        "class Reads(Base):\n    pass\n\n\nclass Other(exports.Reads):",
    );
    write(&project, "ops/__init__.py", "");
    write(
        &project,
        "ops/reading.py",
        "from wit_world import exports\nfrom wit_world.imports import buffer, next\n\nfrom .numbers import ODD\n\n\n\
         class Base(exports.Reads):\n    def pread(self, offset, length, flags):\n        if offset == \
         ODD:\n            \
         raise ValueError(\"it is odd\")\n        next.pread(offset, length, 0, 0)\n        buffer.xor(0, 0, length, \
         b\"\\xff\", 0)\n",
    );
    write(&project, "ops/numbers.py", "ODD = 4096\n");
    works(&project, &["ValueError: it is odd", "ops/reading.py\", line 10, in pread"]);
}
