//! `rbdkit-filter check`: filters that are wrong in one way each, and what it says of them.

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

    /// The error, and the steps of the smallest sequence. The script repeats the error.
    fn finding(&self, arguments: &[&str]) -> (String, Vec<String>) {
        let script = self.dir.join("script");
        let output = self.check(&[arguments, &["--save", script.to_str().unwrap()]].concat());
        let message = error_of(&output);
        let again = check(&[self.file.to_str().unwrap(), "--replay", script.to_str().unwrap(), "--patience", "5"]);
        let repeated = error_of(&again);
        assert_eq!(repeated.split(" in ").next(), message.split(" in ").next());
        let text = std::fs::read_to_string(script).unwrap();
        let steps = text.lines().skip(2).map(str::to_string).collect();
        (message, steps)
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

#[test]
fn a_filter_that_drops_writes_is_found_with_a_write_and_a_read_of_one_byte() {
    let body =
        r#"(func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    let wrong = Wrong::new(&Guest::new("drops", &["writes"], body));
    let (message, steps) = wrong.finding(&["--transforms", "identity"]);
    has(&message, &["pread of 1 bytes at ", ", but what was written there is ", "; the byte is the one from before"]);
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert!(steps[0].contains("pwrite") && steps[1].contains("pread"), "{steps:?}");
    // Without a word of the author, what was written has to be read back.
    has(&wrong.finding(&[]).0, &["but what was written there is"]);
    let own = wrong.check(&["--transforms", "own"]);
    assert!(own.status.success(), "{}", String::from_utf8_lossy(&own.stderr));
}

#[test]
fn a_filter_whose_writes_stay_in_memory_is_no_identity() {
    let wrong = Wrong { dir: TempDir::new(), file: filter("cow") };
    let (message, steps) = wrong.finding(&["--transforms", "identity"]);
    // It writes nothing below: that shows at the end, or after a restart.
    has(&message, &["0x"]);
    assert!(steps.len() <= 3, "{steps:?}");
}

/// Reads of the first 64 KiB are answered from a copy that is made once.
#[test]
fn a_filter_that_answers_from_an_old_copy_after_a_write_is_found() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $keep (param i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pread" (func $kept (param i32 i64 i32 i32 i32 i32)))
    (global $copied (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.gt_u (i64.add (local.get 0) (i64.extend_i32_u (local.get 1))) (i64.const 65536)) (then
            (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
            (return (i32.const 2048))))
        (if (i32.eqz (global.get $copied)) (then
            (call $alloc (i32.const 65536) (i32.const 2048))
            (call $next_pread
                (i64.const 0) (i32.const 65536) (i32.load (i32.const 2052)) (i32.const 0) (i32.const 2064))
            (call $keep (i32.const 2) (i64.const 0) (i32.const 65536)
                (i32.load (i32.const 2052)) (i32.const 0) (i32.const 2080))
            (global.set $copied (i32.const 1))))
        (call $kept (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let guest = Guest { recovery: 2, ..Guest::new("stale", &["reads"], body) }.model(1);
    let (message, steps) = Wrong::new(&guest).finding(&["--transforms", "identity"]);
    has(&message, &["pread of 1 bytes at "]);
    assert!(
        message.contains("; the byte is the one from before that write") || message.contains("zeroed"),
        "{message}"
    );
    // Read, so that the copy is made; write; read.
    assert!(steps.len() <= 3, "{steps:?}");
}

#[test]
fn a_filter_that_shifts_unaligned_reads_is_found() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (i64.and (local.get 0) (i64.const -512)) (local.get 1)
            (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let wrong = Wrong::new(&Guest::new("shifts", &["reads"], body));
    let (message, steps) = wrong.finding(&["--transforms", "identity"]);
    has(&message, &["pread of 1 bytes at ", ", but the disk below had at first "]);
    assert_eq!(steps.len(), 1, "{steps:?}");
    has(&wrong.finding(&[]).0, &["returns 0x"]);
}

#[test]
fn a_filter_that_writes_although_it_is_said_to_be_read_only_is_found() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "zero" (func $zero (param i64 i64 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $zero (i64.const 77) (i64.const 3) (i32.const 0) (i32.const 2048))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let wrong = Wrong::new(&Guest::new("writes", &["reads"], body));
    // Nothing else in the test may write: a writable filter passes the client's own writes on.
    let (message, steps) = wrong.finding(&["--transforms", "read-only"]);
    has(&message, &["the filter is said to be read-only, but it sent a ", " to the disk below"]);
    assert_eq!(steps.len(), 1, "{steps:?}");
}

#[test]
fn a_filter_that_never_answers_is_found_in_the_time_that_it_may_take() {
    let sleep = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
    let code = "(call $sleep (i64.const 9000000000000000000) (i32.const 2048))";
    let mut guest = Guest::reads("sleeps", sleep, code);
    guest.body = guest.body.replace("(i64.eq (local.get 0) (i64.const $TRIGGER))", "(i32.const 1)");
    let (message, steps) = Wrong::new(&guest).finding(&["--patience", "5"]);
    has(&message, &["the filter never answers: pread of ", " has not ended in "]);
    assert_eq!(steps.len(), 1, "{steps:?}");
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
fn a_filter_whose_requests_all_fail_is_found_whatever_it_promises() {
    for promise in ["identity", "bijective", "own"] {
        let (message, steps) = Wrong::new(&failing(2)).finding(&["--transforms", promise]);
        has(&message, &["every read and write fails ("]);
        assert!(message.contains("EIO"), "{message}");
        assert!(steps.len() <= 5, "{steps:?}");
    }
    let (message, _) = Wrong::new(&failing(3)).finding(&[]);
    has(&message, &["every read and write fails with ENOMEM: the filter needs more memory than its limits allow"]);
}

#[test]
fn a_filter_that_traps_at_one_offset_is_found_with_the_operation() {
    let mut guest = Guest::reads("traps", "", "(unreachable)");
    guest.body = guest.body.replace("(i64.eq (local.get 0)", "(i64.gt_u (local.get 0)");
    let (message, steps) = Wrong::new(&guest).finding(&["--transforms", "own"]);
    has(&message, &["the filter failed in pread of 1 bytes at ", "it trapped or reached a limit"]);
    assert_eq!(steps.len(), 1, "{steps:?}");
}

#[test]
fn each_filter_of_the_project_keeps_the_promise_that_fits_it() {
    for (name, promise, params) in [
        ("blocksize", "identity", &["minblock=4k", "maxdata=1M"][..]),
        ("cache", "identity", &[]),
        ("cacheextents", "identity", &[]),
        ("count", "identity", &[]),
        ("cow", "read-only", &[]),
        ("delay", "identity", &["rdelay=100us"]),
        ("error", "own", &["error-rate=5%"]),
        ("log", "identity", &["logfile=/dev/null"]),
        ("nofilter", "identity", &[]),
        ("offset", "bijective", &["offset=1000003", "range=36M"]),
        ("rate", "identity", &["rate=100G"]),
        ("readahead", "identity", &[]),
        ("retry", "identity", &["retry-delay=1ms"]),
        ("retry-request", "identity", &["retry-request-delay=1ms"]),
        ("scan", "identity", &[]),
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

#[test]
fn a_required_parameter_that_is_missing_is_named_in_one_line() {
    let guest = Guest {
        params: vec![("key", "int")],
        // The byte `required` of the first parameter.
        describe: "(i32.store8 (i32.const 1344) (i32.const 1)) (i32.const 1024)",
        ..Guest::new("needy", &[], "")
    };
    let wrong = Wrong::new(&guest);
    let output = wrong.check(&[]);
    has(&error_of(&output), &["needy", "key"]);
    assert_eq!(output.stderr.iter().filter(|byte| **byte == b'\n').count(), 1);
    let given = wrong.check(&["key=1", "--ops", "200"]);
    assert!(given.status.success(), "{}", String::from_utf8_lossy(&given.stderr));
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

/// What it writes below depends on how many writes came before.
#[test]
fn state_in_memory_is_found_by_what_is_on_the_disk_below_and_made_small() {
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "zero" (func $zero (param i64 i64 i32 i32)))
    (global $writes (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (global.set $writes (i32.add (global.get $writes) (i32.const 1)))
        (if (i32.eq (global.get $writes) (i32.const 3)) (then
            (call $zero (i64.const 40000000) (i64.const 512) (i32.const 0) (i32.const 2048))))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))"#;
    let wrong = Wrong::new(&Guest::new("counts", &["writes"], body));
    let (message, steps) = wrong.finding(&["--transforms", "own"]);
    has(&message, &["the filter keeps state in its memory: "]);
    assert!(steps.iter().filter(|step| step.contains("pwrite")).count() >= 3, "{steps:?}");
    assert!(steps.len() <= 6, "{steps:?}");
}

#[test]
fn an_exported_interface_that_no_host_calls_is_named() {
    let body = r#"
    (func (export "rbdkit:filter/raeds@0.1.0#pread") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    let contract = "interface raeds {\n  use types.{errno, command-flags};\n  pread: func(offset: u64, length: u32, \
                    %flags: command-flags) -> result<_, errno>;\n}";
    let wrong = Wrong::new(&Guest { contract, ..Guest::new("misspelt", &["raeds"], body) });
    let why = "it exports rbdkit:filter/raeds, which this host does not know: did you mean reads?";
    assert_eq!(error_of(&wrong.check(&[])), why);
    let file = wrong.file.to_str().unwrap();
    let tool = |command: &str| program().with_file_name(command);
    let inspect = wait::output_within(LIMIT, Command::new(tool("rbdkit-filter")).args(["inspect", file]));
    has(&String::from_utf8_lossy(&inspect.stdout), &[&format!("  warning: {why}\n")]);
    let json = wait::output_within(LIMIT, Command::new(tool("rbdkit-filter")).args(["inspect", "--json", file]));
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["unknown-exports"], serde_json::json!([why]));
    let wasm = format!("--wasm-filter={file}");
    let server =
        wait::output_within(LIMIT, Command::new(program()).args(["-U", "-", &wasm, "memory", "1M", "--run", "true"]));
    has(&String::from_utf8_lossy(&server.stderr), &[&format!("misspelt: {why}")]);
    assert!(server.status.success());
}
