//! `rbdkit-filter call`: one operation, what the guest did in it, and how faults are explained.

#[path = "untrusted/guest.rs"]
#[allow(dead_code, reason = "the tests of untrusted components use the rest")]
mod guest;

use std::process::{Command, Output};
use std::time::Duration;

use guest::{Guest, component_of_module};
use rbdkit_tests::server::{filter, program, root};
use rbdkit_tests::{TempDir, wait};
use serde_json::Value;

/// How long the tool may take, on a machine that is busy: it compiles the filter.
const LIMIT: Duration = Duration::from_secs(300);

fn call(arguments: &[&str]) -> Output {
    let tool = program().with_file_name("rbdkit-filter");
    wait::output_within(LIMIT, Command::new(tool).arg("call").args(arguments))
}

/// What it prints for a filter of the project.
fn shown(name: &str, arguments: &[&str]) -> String {
    let file = filter(name);
    let output = call(&[&[file.to_str().unwrap()], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(name: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&shown(name, &[arguments, &["--json"]].concat())).unwrap()
}

/// The error of a filter of the project.
fn refused(name: &str, arguments: &[&str]) -> String {
    let file = filter(name);
    let output = call(&[&[file.to_str().unwrap()], arguments].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_read_is_shown_with_the_calls_of_the_host_and_its_first_bytes() {
    let text = shown("offset", &["pread", "8", "24", "offset=4k"]);
    has(
        &text,
        &[
            "pread 8 24 through offset (parallel, stateless)\n",
            "guest: pread(offset=8, length=24, flags=none) -> ok in ",
            "next.pread(offset=4104, length=24, buf=0, at=0) -> ok in ",
            "the disk below got:\n  pread 4104 24\n",
            "answer: ok, 24 bytes, sha256 ",
            "  00000000  00 00 00 00 00 00 10 08 00 00 00 00 00 00 10 10  |................|\n",
            "time: ",
            "(of WebAssembly in the guest, as wasmtime's fuel counts them, without the host's",
        ],
    );
}

#[test]
fn a_record_is_there_for_programs() {
    let value = json("cow", &["pwrite", "0", "512", "--fill", "0x41", "--flag", "fua"]);
    let call = &value["guest-calls"][0];
    assert_eq!((&call["name"], &call["outcome"]), (&"pwrite".into(), &"ok".into()));
    let names: Vec<&str> =
        call["host-calls"].as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap()).collect();
    for name in ["locks.lock", "buffer.alloc", "next.pread", "scratch.pwrite", "maps.set"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert!(call["instructions"].as_u64().unwrap() > 100);
    assert_eq!(value["instructions"], call["instructions"]);
    // It keeps the write above the disk.
    assert_eq!(value["below"], serde_json::json!(["pread 0 65536"]));
    assert_eq!(value["answer"]["ok"], true);
    // The same work counts the same each time.
    let again = json("cow", &["pwrite", "0", "512", "--fill", "0x42", "--flag", "fua"]);
    assert_eq!(again["instructions"], value["instructions"]);
}

#[test]
fn the_disk_below_can_be_a_file_which_is_never_written() {
    let dir = TempDir::new();
    let disk = dir.file("disk.img", b"hello, this is a disk of forty-one bytes.");
    let disk = disk.to_str().unwrap();
    let text = shown("nofilter", &["pread", "7", "34", "--disk", disk]);
    has(&text, &["|this is a disk o|", "|f forty-one byte|", "|s.|"]);
    has(&refused("nofilter", &["pwrite", "0", "1", "--disk", disk]), &["pwrite 0 1 fails with E"]);
    has(&shown("nofilter", &["size", "--disk", disk]), &["answer: 41 bytes\n"]);
    has(&refused("nofilter", &["pread", "0", "1", "--disk", "/dev/zero"]), &["/dev/zero: is not a regular file"]);
    let data = dir.file("data", b"abc");
    let value = json("nofilter", &["pwrite", "4096", "--data", data.to_str().unwrap()]);
    assert_eq!(value["below"], serde_json::json!(["pwrite 4096 3"]));
}

#[test]
fn questions_and_operations_that_the_filter_does_not_export_are_answered_by_what_is_below() {
    has(
        &shown("nofilter", &["can"]),
        &["does not export features.can: what is below it answers (it is transparent)", "write=true", "fua=native"],
    );
    has(&shown("cow", &["describe"]), &["guest: describe() -> ok in ", "answer: cow 0.1.0: "]);
    has(&shown("blocksize", &["block-size", "minblock=4k"]), &["guest: block-size() -> ok", "answer: minimum "]);
    has(&shown("nofilter", &["list-exports"]), &["answer: \"\"\n"]);
    has(&shown("nofilter", &["zero", "0", "4k", "--flag", "may-trim"]), &["  zero 0 4096 may-trim\n"]);
    has(&shown("nofilter", &["extents", "0", "4k"]), &["next.extents-forward-until(", "answer: 0+4096 data\n"]);
    // Everything from the start on.
    let all = shown("offset", &["pread", "0", "1", "--all", "--param", "offset=1"]);
    has(&all, &["guest: describe() -> ok", "guest: configure() -> ok", "guest: pread("]);
}

#[test]
fn words_that_are_no_operation_are_refused_with_what_would_be_right() {
    has(&refused("nofilter", &["peek", "0"]), &["there is no operation 'peek': use one of pread, pwrite, flush"]);
    has(&refused("nofilter", &["pread", "0"]), &["pread takes an offset and a length, in bytes"]);
    has(&refused("nofilter", &["offset=1"]), &["name an operation after the file"]);
    has(&refused("nofilter", &["pread", "0", "1", "nosuch=1"]), &["the filter has no parameter 'nosuch'"]);
    has(&refused("nofilter", &["pread", "0", "1", "--data", "/dev/zero"]), &["/dev/zero: is not a regular file"]);
}

#[test]
fn a_trap_is_shown_with_the_log_and_the_names_of_functions() {
    let body = r#"
    (import "rbdkit:filter/log@0.1.0" "debug" (func $say (param i32 i32)))
    (func $checksum (unreachable))
    (func $verify (call $checksum))
    (func $read (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $say (i32.const 1100) (i32.const 5))
        (call $verify)
        (i32.const 2048))"#;
    let dir = TempDir::new();
    let file = dir.file("traps.wasm", &Guest::new("traps", &["reads"], body).component(0));
    let output = call(&[file.to_str().unwrap(), "pread", "0", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    has(
        &text,
        &[
            "-> fault: wasm trap: wasm `unreachable` instruction executed; in checksum+0x",
            " < verify+0x",
            " < read+0x",
            "log.debug(message=\"traps\") -> ok",
            "log:\n  traps: traps\n",
            "answer: traps: pread: wasm trap",
        ],
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "rbdkit-filter: error: pread 0 1 fails with EIO\n");
}

#[test]
fn a_trap_after_memory_was_refused_names_the_limit_and_the_option() {
    let code = "(drop (memory.grow (i32.const 1119))) (unreachable)";
    let dir = TempDir::new();
    let file = dir.file("grows.wasm", &Guest::reads("grows", "", code).component(0));
    let output = call(&[file.to_str().unwrap(), "pread", "0", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    has(&text, &["memory: the filter asked for 70"]);
    has(&text, &[" MiB; the limit is 64 MiB (--filter-limit grows:memory=SIZE): wasm trap"]);
    // The server says the same.
    let wasm = format!("--wasm-filter={}", file.to_str().unwrap());
    let read = "nbdsh -u \"$uri\" -c 'h.pread(1, 0)' 2>/dev/null || true";
    let server = wait::output_within(
        LIMIT,
        Command::new(program()).args(["-U", "-", &wasm, "memory", "1M", "--run", read]).env("PATH", "/usr/bin:/bin"),
    );
    has(
        &String::from_utf8_lossy(&server.stderr),
        &["memory: the filter asked for 70", "the limit is 64 MiB (--filter-limit grows:memory=SIZE): wasm trap"],
    );
}

#[test]
fn an_operation_that_never_ends_is_given_up() {
    let sleep = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
    let code = "(call $sleep (i64.const 9000000000000000000) (i32.const 2048))";
    let dir = TempDir::new();
    let file = dir.file("sleeps.wasm", &Guest::reads("sleeps", sleep, code).component(0));
    let output = call(&[file.to_str().unwrap(), "pread", "0", "1", "--patience", "300ms"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "rbdkit-filter: error: pread has not ended in 300ms\n");
}

/// A filter in C with debugging information, in a file.
fn with_lines(dir: &TempDir) -> String {
    let module = dir.join("module.wasm");
    let mut clang = Command::new("clang");
    clang.args(["--target=wasm32", "-g", "-O1", "-nostdlib", "-Wl,--no-entry", "-o"]).arg(&module);
    let built = wait::output_within(LIMIT, clang.arg(root().join("tests/guest-c/lines.c")));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let component = component_of_module(std::fs::read(module).unwrap(), "", "export rbdkit:filter/reads@0.1.0;");
    dir.file("lines.wasm", &component).to_str().unwrap().to_string()
}

/// The number of the line of the C file that has this text, with the file's name.
fn line_of(text: &str) -> String {
    let source = std::fs::read_to_string(root().join("tests/guest-c/lines.c")).unwrap();
    let line = source.lines().position(|line| line.contains(text)).unwrap() + 1;
    format!("(tests/guest-c/lines.c:{line})")
}

#[test]
fn a_trap_is_shown_with_files_and_lines_by_the_tools_and_not_by_the_server() {
    let dir = TempDir::new();
    let file = with_lines(&dir);
    let frames = format!(
        "in inner {} < checksum {} < pread_ {}",
        line_of("__builtin_trap"),
        line_of("    inner(offset);"),
        line_of("    checksum(offset);")
    );
    let output = call(&[&file, "pread", "512", "1"]);
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    has(&shown, &[&frames]);
    let tool = program().with_file_name("rbdkit-filter");
    let check =
        wait::output_within(LIMIT, Command::new(tool).args(["check", &file, "--seed", "5", "--transforms", "own"]));
    has(&String::from_utf8_lossy(&check.stderr), &[&frames]);
    let wasm = format!("--wasm-filter={file}");
    let read = "nbdsh -u \"$uri\" -c 'h.pread(1, 512)' 2>/dev/null || true";
    let server = wait::output_within(
        LIMIT,
        Command::new(program()).args(["-U", "-", &wasm, "memory", "1M", "--run", read]).env("PATH", "/usr/bin:/bin"),
    );
    let log = String::from_utf8_lossy(&server.stderr);
    has(&log, &["; in checksum+0x", " < pread_+0x"]);
    assert!(!log.contains("lines.c"), "{log}");
}

#[test]
fn a_disk_of_a_parameter_is_a_file_and_each_use_of_it_is_shown() {
    let body = r#"
    (import "rbdkit:filter/disks@0.1.0" "size" (func $size (param i32 i32 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "pread" (func $read (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "extents" (func $extents (param i32 i32 i32 i64 i64 i32 i32)))
    (data (i32.const 3000) "base")
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $size (i32.const 3000) (i32.const 4) (i32.const 0) (i32.const 2104))
        (call $extents (i32.const 3000) (i32.const 4) (i32.const 0) (i64.const 0) (i64.const 9) (i32.const 0)
            (i32.const 2104))
        (call $read (i32.const 3000) (i32.const 4) (i32.const 0) (local.get 0) (local.get 1) (i32.const 0)
            (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let dir = TempDir::new();
    let guest = Guest { params: vec![("base", "disk")], ..Guest::new("reads-a-disk", &["reads"], body) };
    let component = dir.file("disk.wasm", &guest.component(0));
    let base = dir.file("base.img", b"the base of it");
    let component = component.to_str().unwrap();
    let of = |value: &str, arguments: &[&str]| {
        call(&[&[component], arguments, &["--param", &format!("base={value}")]].concat())
    };
    let output = of(base.to_str().unwrap(), &["pread", "4", "5"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    has(
        &String::from_utf8(output.stdout).unwrap(),
        &[
            "disks.size(param=\"base\", nth=0) -> 14 in ",
            "disks.extents(param=\"base\", nth=0, offset=0, length=9, flags=none) -> [1 items: ",
            "disks.pread(param=\"base\", nth=0, offset=4, length=5, buf=0, at=0) -> ok in ",
            "|base |",
        ],
    );
    for (value, line) in [
        (
            "chain:memory 1M",
            "base=chain:...: this program has no plugins: give the name of a file, or serve the filter with rbdkit",
        ),
        ("/nonexistent", "base=/nonexistent: No such file or directory"),
        ("/dev/null", "base=/dev/null: is not a regular file"),
    ] {
        let output = of(value, &["pread", "0", "1"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("rbdkit-filter: error: {line}\n"));
    }
}
