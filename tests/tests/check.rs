//! `rbdkit-filter check`: what it tests, and how it says what it found. Filters that are wrong in
//! one way each are in tests/wrong.

#[path = "untrusted/guest.rs"]
#[allow(dead_code, reason = "the tests of untrusted components use the rest")]
mod guest;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use guest::Guest;
use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{TempDir, wait};

/// How long the tool may take. It bounds itself to 10 s for the test and 10 s for making the
/// sequence smaller, on a machine that is not busy.
const LIMIT: Duration = Duration::from_secs(300);

fn check(arguments: &[&str]) -> Output {
    let tool = program().with_file_name("rbdkit-filter");
    wait::output_within(LIMIT, Command::new(tool).arg("check").args(arguments))
}

/// A wrong filter in a file.
struct Wrong {
    dir: TempDir,
    file: PathBuf,
}

impl Wrong {
    fn new(guest: &Guest) -> Wrong {
        let dir = TempDir::new();
        let file = dir.file("wrong.wasm", &guest.component(4096));
        Wrong { dir, file }
    }

    fn check(&self, arguments: &[&str]) -> Output {
        check(&[&[self.file.to_str().unwrap(), "--seed", "5"], arguments].concat())
    }

    fn check_script(&self, script: &std::path::Path) -> Output {
        check(&[self.file.to_str().unwrap(), "--transforms", "own", "--replay", script.to_str().unwrap()])
    }
}

/// The last line on standard error, which begins with the program's name.
fn error_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let (shown, line) = (String::from_utf8_lossy(&output.stdout), text.lines().last().unwrap_or_default());
    let message = line.strip_prefix("rbdkit-filter: error: ").unwrap_or_else(|| panic!("{text}\n{shown}"));
    assert_eq!(output.status.code(), Some(1));
    message.to_string()
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// A filter whose reads and writes fail with an error of this number.
fn failing(errno: u8) -> Guest {
    let body = format!(
        r#"
    (data (i32.const 3000) "\01\{errno:02x}")
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32) (i32.const 3000))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32) (i32.const 3000))"#
    );
    Guest::new("fails", &["reads", "writes"], &body)
}

#[test]
fn each_filter_of_the_project_keeps_the_promise_that_fits_it() {
    let dir = TempDir::new();
    let mapfile = format!("ddrescue-mapfile={}", dir.file("map", b"0 +\n0 0x7fffffffffff +\n").display());
    let list = format!("extentlist={}", dir.file("list", b"0 1P\n").display());
    let trace = format!("trace-file={}", dir.join("trace").display());
    for (name, promise, params) in [
        ("blocksize", "identity", &["minblock=4k", "maxdata=1M"][..]),
        ("blocksize-policy", "identity", &["blocksize-preferred=32k"]),
        ("cache", "identity", &[]),
        ("cacheextents", "identity", &[]),
        ("count", "identity", &[]),
        ("cow", "read-only", &[]),
        ("delay", "identity", &["rdelay=100us"]),
        ("error", "own", &["error-rate=5%"]),
        ("exportname", "identity", &["exportdesc=fixed:a disk"]),
        ("ip", "identity", &[]),
        ("limit", "identity", &["limit=100"]),
        ("log", "identity", &["logfile=/dev/null"]),
        ("multi-conn", "identity", &["multi-conn-mode=unsafe"]),
        ("nofilter", "identity", &[]),
        ("offset", "bijective", &["offset=1000003", "range=36M"]),
        ("prefetch", "identity", &[trace.as_str()]),
        ("rate", "identity", &["rate=100G"]),
        ("readahead", "identity", &[]),
        ("retry", "identity", &["retry-delay=1ms"]),
        ("retry-request", "identity", &["retry-request-delay=1ms"]),
        ("scan", "identity", &[]),
        ("spinning", "identity", &["min-seek-time=0", "half-seek-time=20us", "max-seek-time=50us"]),
        // checkwrite keeps none: it fails every write of something new. evil keeps none: it leaves
        // holes as they are, and what is a hole may depend on where a request for extents begins.
        ("ddrescue", "read-only", &[mapfile.as_str()]),
        ("extentlist", "identity", &[list.as_str()]),
        ("fua", "identity", &["fuamode=force"]),
        ("map", "bijective", &["map=0-1000002:5000000", "map=5000000-6000002:0"]),
        ("nocache", "identity", &["cachemode=emulate"]),
        ("noextents", "identity", &[]),
        ("noparallel", "identity", &[]),
        ("nozero", "identity", &["zeromode=emulate"]),
        ("protect", "own", &["protect=100000-3000000"]),
        ("readonly", "read-only", &[]),
        ("rotational", "identity", &[]),
        ("swab", "own", &["swab-bits=64"]),
        ("truncate", "bijective", &["truncate=36M"]),
        ("stats", "identity", &["statsfile=/dev/null"]),
    ] {
        let file = filter(name);
        let arguments = [&[file.to_str().unwrap()][..], params, &["--transforms", promise, "--ops", "600"]].concat();
        // The longest requests take most of the time.
        let largest = if name == "nofilter" { "32M" } else { "4M" };
        let arguments = [&arguments[..], &["--largest", largest]].concat();
        let output = check(&arguments);
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {errors}\n{text}");
        has(
            &text,
            &[
                "seed ",
                "over a writable disk: ",
                "over a read-only disk: ",
                "over a disk that fails: ",
                "over reused and fresh ",
            ],
        );
        assert!(text.ends_with("nothing wrong was found\n"), "{text}");
    }
}

#[test]
fn the_result_is_there_for_programs_and_for_continuous_integration() {
    let wrong = Wrong::new(&failing(2));
    let junit = wrong.dir.join("result.xml");
    let output = wrong.check(&["--json", "--junit", junit.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["passed"], &value["seed"], &value["filter"]), (&false.into(), &5.into(), &"fails".into()));
    has(value["finding"]["script"].as_str().unwrap(), &["transforms bijective\n"]);
    let text = std::fs::read_to_string(&junit).unwrap();
    has(
        &text,
        &["tests=\"1\" failures=\"1\"", "<testcase classname=\"fails\" name=\"a writable disk\"", "every read and"],
    );
    let missing = wrong.check(&["nosuch=1", "--junit", junit.to_str().unwrap()]);
    has(&error_of(&missing), &["the filter has no parameter 'nosuch'"]);
    has(&std::fs::read_to_string(&junit).unwrap(), &["name=\"start\"", "the filter has no parameter &apos;nosuch"]);
    let nofilter = filter("nofilter");
    let output = check(&[nofilter.to_str().unwrap(), "--json", "--ops", "200", "--largest", "64k"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["passed"], true);
    assert_eq!(value["parts"].as_array().unwrap().len(), 4);
}

#[test]
fn a_script_that_cannot_be_run_is_refused_in_one_line() {
    let dir = TempDir::new();
    let nofilter = filter("nofilter");
    for (text, message) in [
        ("1 pread 0 1\nx\n", "line 2: 'x' is not understood"),
        ("1 pread 100000000 1\n", "pread of 1 bytes at 100000000 is beyond the 50331648 bytes that are tested"),
    ] {
        let script = dir.file("script", text.as_bytes());
        let output = check(&[nofilter.to_str().unwrap(), "--replay", script.to_str().unwrap()]);
        has(&error_of(&output), &[message]);
        assert_eq!(output.stderr.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}

/// A filter that XORs the first byte of each read with a count of the reads, which it keeps in its
/// memory.
fn counting() -> Guest {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "fill" (func $fill (param i32 i32 i32 i32)))
    (global $reads (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (call $fill (i32.const 0) (i32.const 0) (i32.const 1) (global.get $reads))
        (global.set $reads (i32.add (global.get $reads) (i32.const 1)))
        (i32.const 2048))"#;
    Guest::new("counts", &["reads"], body)
}

#[test]
fn a_parallel_filter_that_keeps_state_in_its_memory_is_found() {
    for guest in [counting(), counting().model(2)] {
        // The model of `own` does not mind: nothing is read twice, or something was written
        // between.
        let wrong = Wrong::new(&guest);
        let script = wrong.dir.file("script", b"compare instances\n1 pread 0 8\n1 pread 64 8\n1 pread 128 8\n");
        let output = wrong.check_script(&script);
        has(
            &error_of(&output),
            &[
                "the filter keeps state in its memory: pread of 8 bytes at 64 returns 0x01 at 64 on an instance that \
                 served other calls, and 0x00 on a fresh one; the host ",
                "(keep the state in maps, slots or scratch, or choose a thread model and a recovery that allow it)",
            ],
        );
    }
    // A thread model and a recovery that allow it.
    let allowed = Wrong::new(&Guest { recovery: 2, ..counting().model(1) });
    let script = allowed.dir.file("script", b"compare instances\n1 pread 0 8\n1 pread 64 8\n");
    let output = allowed.check_script(&script);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    has(&text, &["not compared: its thread model and recovery allow state in its memory"]);
}

#[test]
fn what_a_filter_does_not_promise_and_a_parameter_that_is_given_are_no_faults() {
    let body =
        r#"(func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    let drops = Wrong::new(&Guest::new("drops", &["writes"], body)).check(&["--transforms", "own"]);
    assert!(drops.status.success(), "{}", String::from_utf8_lossy(&drops.stderr));
    let needy = Guest {
        params: vec![("key", "int")],
        // The byte `required` of the first parameter.
        describe: "(i32.store8 (i32.const 1344) (i32.const 1)) (i32.const 1024)",
        ..Guest::new("needy", &[], "")
    };
    let given = Wrong::new(&needy).check(&["key=1", "--ops", "200"]);
    assert!(given.status.success(), "{}", String::from_utf8_lossy(&given.stderr));
}
