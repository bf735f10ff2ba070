//! Wrong filters in JavaScript, TypeScript and Python.

use crate::case::Edit::{Append, New, Replace};
use crate::case::FoundBy::{Build, Check, Inspect};
use crate::case::{Case, Edit};

const NOT_EXPORTED: &str = "the filter implements trims, but wit/world.wit does not export it: the server would never \
 call it. Clients could \
     not trim, or trims would pass by a transparent filter. Add the export, or remove the code";
const TRAPPED: &str = "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)";

/// A line at the beginning of the file.
const fn first_js(line: &'static str) -> Edit {
    Replace("filter.js", "import * as next", line)
}

const JS_READ: &str = "    next.pread(offset, length, PAYLOAD, 0);\n";

pub const JS: &[Case] = &[
    Case {
        name: "an operation is async",
        edits: &[Replace("filter.js", "  pread(offset", "  async pread(offset")],
        found_by: Build,
        says: "filter.js:48: reads.pread is async. The server needs its answer when it returns, and nothing would run \
               it to its end: write it without async and await",
    },
    Case {
        name: "an operation of another file is async",
        edits: &[
            first_js("import { pread } from \"./more.js\";\nimport * as next"),
            Replace("filter.js", "export const reads = {", "export const reads = { pread };\nexport const other = {"),
            New("more.js", "// It waits.\nexport const pread = async (offset, length, flags) => {};\n"),
        ],
        found_by: Build,
        says: "more.js:2: reads.pread is async. The server needs its answer when it returns, and nothing would run it \
               to its end: write it without async and await",
    },
    Case {
        name: "the world does not export an operation",
        edits: &[Append("filter.js", "export const trims = { trim(offset, length, flags) {} };\n")],
        found_by: Build,
        says: NOT_EXPORTED,
    },
    Case {
        name: "an object is not exported",
        edits: &[Replace("filter.js", "export const writes", "const writes")],
        found_by: Build,
        says: "filter.js:56: writes is written here, but filter.js does not export it: the server would never call it. \
               The disk would be read-only, or writes would pass by a transparent filter. Export it from filter.js, \
               or remove the code",
    },
    Case {
        name: "an operation stays in another file",
        edits: &[
            first_js("import \"./trims.js\";\nimport * as next"),
            New("trims.js", "export const trims = {\n  trim(offset, length, flags) {},\n};\n"),
        ],
        found_by: Build,
        says: "trims.js:1: trims is written here, but filter.js does not export it: the server would never call it. \
               Clients could not trim, or trims would pass by a transparent filter. Export it from filter.js, or \
               remove the code",
    },
    Case {
        name: "the name of an operation is misspelt",
        edits: &[Replace("filter.js", "  pread(offset", "  prread(offset")],
        found_by: Build,
        says: "wit/world.wit exports reads, but the filter does not implement reads.pread: write it, or remove the \
               export",
    },
    Case {
        name: "it is no JavaScript",
        edits: &[Replace("filter.js", "const PAYLOAD = 0;", "const PAYLOAD = ;")],
        found_by: Build,
        says: "filter.js:11:17: Unexpected token",
    },
    Case {
        name: "an imported file is no JavaScript",
        edits: &[first_js("import \"./more.js\";\nimport * as next"), New("more.js", "\nexport const one = ;\n")],
        found_by: Build,
        says: "more.js:2:20: Unexpected token",
    },
    Case {
        name: "an imported file is not there",
        edits: &[first_js("import { one } from \"./gone.js\";\nimport * as next")],
        found_by: Build,
        says: "filter.js:7: imports ./gone.js, which does not exist",
    },
    Case {
        name: "an imported file is outside of the project",
        edits: &[first_js("import { one } from \"../../one.js\";\nimport * as next")],
        found_by: Build,
        says: "filter.js:7: imports ../../one.js, which is outside of the project: a filter can import only files of \
               its project",
    },
    Case {
        name: "an imported name is not exported",
        edits: &[
            first_js("import { two } from \"./more.js\";\nimport * as next"),
            New("more.js", "export const one = 1;\n"),
        ],
        found_by: Build,
        says: "filter.js:7: imports two, which more.js does not export",
    },
    Case {
        name: "a package is not installed",
        edits: &[first_js("import { one } from \"@some/package/file.js\";\nimport * as next")],
        found_by: Build,
        says: "filter.js:7: imports @some/package/file.js, which is not in node_modules: npm install @some/package",
    },
    Case {
        name: "a part of Node.js is imported",
        edits: &[first_js("import { readFileSync } from \"node:fs\";\nimport * as next")],
        found_by: Build,
        says: "filter.js:7: imports node:fs, a part of Node.js that a filter does not have",
    },
    Case {
        name: "a field of the description is missing",
        edits: &[Replace("filter.js", "      longname: \"exclusive-or with a number\",\n", "")],
        found_by: Build,
        says: "filter.js:18: describe: field `longname` is missing",
    },
    Case {
        name: "the contract lacks a field",
        edits: &[
            Replace("filter.js", "      longname: \"exclusive-or with a number\",\n", ""),
            Replace("wit/deps/rbdkit-filter/filter.wit", "    longname: string,\n", ""),
        ],
        found_by: Inspect,
        says: "rbdkit-filter: error: *mine.wasm: it does not fit this host's rbdkit:filter@0.1.0: filter.describe: \
         field \
               `longname` is missing",
    },
    Case {
        name: "the same read returns something else each time",
        edits: &[Replace(
            "filter.js",
            JS_READ,
            "    next.pread(offset, length, PAYLOAD, 0);\n    buffer.fill(PAYLOAD, 0, 1, Math.random() * 256);\n",
        )],
        found_by: Check(&["--transforms", "own", "--ops", "300"]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but an earlier read returned 0x*",
    },
    Case {
        name: "an error has a name that no error has",
        edits: &[Replace(
            "filter.js",
            JS_READ,
            "    if (offset % 2) throw \"EINVAL\";\n    next.pread(offset, length, PAYLOAD, 0);\n",
        )],
        found_by: Check(&["--ops", "100"]),
        says: TRAPPED,
    },
];

const TS_MORE: &str = "import { one } from \"./more\";\nimport * as next";

pub const TS: &[Case] = &[
    Case {
        name: "a type is wrong",
        edits: &[Replace("filter.ts", "const PAYLOAD = 0;", "const PAYLOAD = \"0\";")],
        found_by: Build,
        says: "filter.ts(*): error TS2345: Argument of type 'string' is not assignable to parameter of type 'number'.",
    },
    Case {
        name: "an operation is async",
        edits: &[Replace("filter.ts", "pread(offset, length, flags) {", "async pread(offset, length, flags) {")],
        found_by: Build,
        says: "filter.ts:46: reads.pread is async. The server needs its answer when it returns, and nothing would run \
               it to its end: write it without async and await",
    },
    Case {
        name: "an enum has code",
        edits: &[Replace("filter.ts", "const PAYLOAD = 0;", "enum Buffer { PAYLOAD }")],
        found_by: Build,
        says: "filter.ts(*): error TS1294: This syntax is not allowed when 'erasableSyntaxOnly' is enabled.",
    },
    Case {
        name: "an imported file has a wrong type",
        edits: &[
            Replace("filter.ts", "import * as next", TS_MORE),
            New("more.ts", "export const one: number = \"1\";\n"),
        ],
        found_by: Build,
        says: "more.ts(1,14): error TS2322: Type 'string' is not assignable to type 'number'.",
    },
    Case {
        name: "an operation stays in another file",
        edits: &[
            Replace("filter.ts", "import * as next", TS_MORE),
            New(
                "more.ts",
                "export const one: number = 1;\nexport const trims = {\n  trim(offset: number, length: number, flags: \
                 object): void {},\n};\n",
            ),
        ],
        found_by: Build,
        says: "more.ts:2: trims is written here, but filter.ts does not export it: the server would never call it. *",
    },
    Case {
        name: "an imported file is outside of the project",
        edits: &[Replace(
            "filter.ts",
            "import * as next",
            "// @ts-ignore\nimport one from \"../other/one.js\";\nimport * as next",
        )],
        found_by: Build,
        says: "filter.ts:*: imports ../other/one.js, which is outside of the project: a filter can import only files \
         of \
               its project",
    },
];

const PYTHON_IMPORT: &str = "from wit_world import exports\n";

pub const PYTHON: &[Case] = &[
    Case {
        name: "it is no Python",
        edits: &[Replace("filter.py", "PAYLOAD = 0", "PAYLOAD = (")],
        found_by: Build,
        says: "filter.py:15:11: '(' was never closed",
    },
    Case {
        name: "the world does not export an operation",
        edits: &[Append("filter.py", "\n\nclass Trims:\n    def trim(self): pass\n")],
        found_by: Build,
        says: NOT_EXPORTED,
    },
    Case {
        name: "the name of an operation is misspelt",
        edits: &[Replace("filter.py", "def pwrite(", "def prwite(")],
        found_by: Build,
        says: "wit/world.wit exports writes, but the filter does not implement writes.pwrite: write it, or remove the \
               export",
    },
    Case {
        name: "an operation is async",
        edits: &[Replace("filter.py", "    def pread(", "    async def pread(")],
        found_by: Build,
        says: "filter.py:50: reads.pread is async. The server needs its answer when it returns, and nothing would run \
               it to its end: write it without async and await",
    },
    Case {
        name: "the name of a class is misspelt",
        edits: &[Replace("filter.py", "class Reads(exports.Reads)", "class READS(exports.Reads)")],
        found_by: Build,
        says: "wit/world.wit exports reads, but the filter does not implement reads.pread: write it, or remove the \
               export",
    },
    Case {
        name: "an import fails",
        edits: &[Replace("filter.py", PYTHON_IMPORT, "from wit_world import export\n")],
        found_by: Build,
        says: "ImportError: cannot import name 'export' from 'wit_world' *",
    },
    Case {
        name: "an imported module is no Python",
        edits: &[
            Replace("filter.py", PYTHON_IMPORT, "import more.one\nfrom wit_world import exports\n"),
            New("more/one.py", "x = (\n"),
        ],
        found_by: Build,
        says: "more/one.py:1:5: '(' was never closed",
    },
    Case {
        name: "an operation of another module is async",
        edits: &[
            Replace("filter.py", PYTHON_IMPORT, "from wit_world import exports\nfrom more import Base\n"),
            Replace(
                "filter.py",
                "class Writes(exports.Writes):",
                "class Writes(Base):\n    pass\n\n\nclass Other(exports.Writes):",
            ),
            New(
                "more.py",
                "from wit_world import exports\n\n\nclass Base(exports.Writes):\n    async def \
                 pwrite(self, offset, length, flags): pass\n",
            ),
        ],
        found_by: Build,
        says: "more.py:5: writes.pwrite is async. The server needs its answer when it returns, and nothing would run \
               it to its end: write it without async and await",
    },
    Case {
        name: "an operation stays in another module",
        edits: &[
            Replace("filter.py", PYTHON_IMPORT, "import more\nfrom wit_world import exports\n"),
            New("more.py", "class Trims:\n    def trim(self, offset, length, flags): pass\n"),
        ],
        found_by: Build,
        says: "more.py:1: trims is written here, but filter.py does not export it: the server would never call it. *",
    },
];
