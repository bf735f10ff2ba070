//! `rbdkit-filter`: what it says of the built-in filters, and how a template becomes a filter that
//! serves.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{Launch, TempDir, wait};

const FILTERS: [&str; 7] = ["cache", "cow", "delay", "error", "nofilter", "offset", "readahead"];

/// The tool beside the server under test.
fn tool() -> Command {
    Command::new(program().with_file_name("rbdkit-filter"))
}

/// How long the tool may take. `build` compiles a filter, in the first run with its standard
/// library.
const LIMIT: Duration = Duration::from_secs(1200);

fn run(arguments: &[&str]) -> Output {
    wait::output_within(LIMIT, tool().args(arguments))
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn error(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn inspect_shows_what_a_filter_is_and_imports() {
    for name in FILTERS {
        let path = filter(name);
        let text = ok(&["inspect", path.to_str().unwrap()]);
        assert!(text.starts_with(&format!("{name} 0.1.0: ")), "{text}");
        for part in ["@sha256:", "thread model:  ", "imports, and what each one grants:", "  filter\n", "  memory "] {
            assert!(text.contains(part), "{name}: no {part:?} in {text}");
        }
        assert!(!text.contains("unknown: refused"), "{text}");
    }
}

#[test]
fn inspect_is_readable_for_programs() {
    let path = filter("cow");
    let json = ok(&["inspect", "--json", path.to_str().unwrap()]);
    for part in ["\"name\": \"cow\"", "\"sha256\": \"", "\"cow-block-size\"", "\"limits\": {", "\"grants\": "] {
        assert!(json.contains(part), "no {part:?} in {json}");
    }
}

#[test]
fn a_reader_of_the_output_that_leaves_early_is_no_fault() {
    let path = filter("cow");
    let mut command = tool();
    command.args(["inspect", path.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = wait::finish(wait::TIMEOUT, "rbdkit-filter inspect", child);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn every_filter_passes_check() {
    for name in ["cache", "cow", "nofilter", "readahead"] {
        let text = ok(&["check", filter(name).to_str().unwrap()]);
        assert!(text.ends_with("nothing wrong was found\n"), "{text}");
        assert!(text.contains("pread     ok "), "{text}");
    }
}

#[test]
fn check_names_a_parameter_that_is_not_there() {
    let path = filter("cow");
    let text = error(&["check", path.to_str().unwrap(), "nosuch=1"]);
    assert_eq!(
        text,
        "rbdkit-filter: error: the filter has no parameter 'nosuch' \
         (it has: cow-block-size, cow-on-cache, cow-on-read, cow-file, cow-backing, cow-backing-format), \
         and the disk below it has size\n"
    );
}

#[test]
fn files_that_are_not_components_are_refused() {
    let dir = TempDir::new();
    let file = dir.file("not.wasm", b"not a component");
    let text = error(&["inspect", file.to_str().unwrap()]);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("not.wasm: it is not a WebAssembly component"), "{text}");
    assert!(error(&["new", "Bad"]).contains("cannot be a filter's name"));
    let text = error(&["build", dir.path().to_str().unwrap()]);
    assert!(text.contains("it has no rbdkit-filter.toml (rbdkit-filter new makes one)"), "{text}");
}

#[test]
fn devices_are_not_read_without_end_and_pipes_not_waited_for() {
    let dir = TempDir::new();
    let fifo = dir.join("fifo.wasm");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let huge = dir.sparse_file("huge.wasm", 100 << 30);
    let odd = dir.file("odd\n\u{1b}[2J.wasm", b"x");
    for command in ["inspect", "check", "bench", "build"] {
        for (file, message) in [
            (fifo.to_str().unwrap(), "it is not a WebAssembly component"),
            ("/dev/zero", "cannot read /dev/zero: is not a file"),
            (huge.to_str().unwrap(), "is larger than 64 MiB"),
            (odd.to_str().unwrap(), "odd\\n\\u{1b}[2J.wasm: "),
        ] {
            let text = error(&[command, file]);
            assert_eq!(text.lines().count(), 1, "{text}");
            let directory = command == "build" && text.contains("it has no rbdkit-filter.toml");
            assert!(text.contains(message) || directory, "{command}: {text}");
        }
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let cow = filter("cow");
    let mut command = tool();
    command.args(["inspect", cow.to_str().unwrap()]).stdout(full).stderr(Stdio::piped());
    let output = wait::finish(wait::TIMEOUT, "rbdkit-filter inspect", command.spawn().unwrap());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("rbdkit-filter: error: cannot write to standard output: "), "{text}");
    assert_eq!((text.lines().count(), output.status.code()), (1, Some(1)));
}

#[test]
fn a_damaged_module_is_an_error_of_one_line() {
    let dir = TempDir::new();
    // A module that ends within its code.
    let cut = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x64\x01";
    let mut modules = vec![cut.to_vec()];
    for name in ["component-type", "component-type:x"] {
        for payload in [
            &b""[..],
            b"\0asm\x0d\0\x01\0",
            b"\0asm\x0d\0\x01\0\0\x19\x16wit-component-encoding\x04\x00",
            b"\0asm\x0d\0\x01\0\0\x19\x16wit-component-encoding\x03",
        ] {
            let section = [&[name.len() as u8][..], name.as_bytes(), payload].concat();
            modules.push([b"\0asm\x01\0\0\0\0", &[section.len() as u8][..], &section].concat());
        }
    }
    for module in modules {
        let file = dir.file("damaged.wasm", &module);
        let output = run(&["build", file.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr);
        // Some of them become a component without content.
        let refused = output.status.code() == Some(1) && text.lines().count() == 1;
        assert!(refused || (output.status.success() && module != cut), "{module:x?}: {text}");
    }
}

/// Builds the template in C with a line before its variables, and one at the begin of its pread.
fn build_changed(mine: &Path, before: &str, first: &str) {
    ok(&["new", "mine", "--lang", "c", "--dir", mine.to_str().unwrap()]);
    let file = mine.join("filter.c");
    let source = std::fs::read_to_string(&file).unwrap();
    let changed = source
        .replace("static uint8_t key", &format!("{before}static uint8_t key"))
        .replace("    (void)flags;\n", &format!("    (void)flags;\n    {first}\n"));
    assert_ne!(source, changed);
    std::fs::write(&file, changed).unwrap();
    ok(&["build", mine.to_str().unwrap()]);
}

#[test]
fn a_filter_that_fails_does_not_pass_check() {
    let dir = TempDir::new();
    let mine = dir.join("mine");
    let mine = mine.to_str().unwrap();
    build_changed(mine.as_ref(), "", "__builtin_trap();");
    let text = error(&["check", &format!("{mine}/mine.wasm"), "key=7"]);
    assert!(text.lines().any(|line| line.starts_with("rbdkit-filter: error: the filter failed in ")), "{text}");
}

#[test]
fn a_filter_in_c_that_talks_is_adapted_and_inspect_says_what_it_gets() {
    let dir = TempDir::new();
    let mine = dir.join("mine");
    build_changed(&mine, "#include <stdio.h>\n", "fprintf(stderr, \"%u bytes\\n\", length);");
    let component = mine.join("mine.wasm");
    // A module that another toolchain made can be adapted too.
    ok(&["build", mine.join("target/module.wasm").to_str().unwrap()]);
    let adapted = std::fs::read(mine.join("target/module.component.wasm")).unwrap();
    assert!(adapted == std::fs::read(&component).unwrap());
    let text = ok(&["inspect", component.to_str().unwrap()]);
    for (name, grants) in [
        ("wasi:cli/stderr", "lines in the server's log, limited in rate"),
        ("wasi:filesystem/preopens", "nothing: no directories"),
        ("next", "read, write and query the layer below, within the request"),
    ] {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(line.map(str::trim_start), Some(grants), "{text}");
    }
    assert!(!text.contains("unknown: refused"), "{text}");
    let json = ok(&["inspect", "--json", component.to_str().unwrap()]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({"name": "wasi:filesystem/preopens", "grants": "nothing: no directories"});
    assert!(value["imports"].as_array().unwrap().contains(&expected), "{json}");
    let server = Launch::new(["--wasm-filter"]).arg(&component).args(["memory", "1M"]).start();
    server.client().read(0, 512).unwrap();
    server.wait_for_log("rbdkit: warning: mine: 512 bytes\n");
}
