//! `rbdkit --record` and `rbdkit-filter replay`: what real clients do through a filter is recorded,
//! runs again without a server, and shows where another filter differs.

#[path = "untrusted/guest.rs"]
#[expect(dead_code, reason = "the builder of components, of which this test needs few functions")]
mod guest;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guest::Guest;
use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{Launch, Outcome, TempDir, nbdsh, tool, wait};
use serde_json::Value;

/// The size of the disks.
const SIZE: usize = 4 << 20;

fn replay<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program().with_file_name("rbdkit-filter"));
    wait::output(command.arg("replay").args(arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Replays a record and gives what was printed. Nothing differs.
fn same(record: &Path, component: &Path, more: &[&str]) -> String {
    let arguments = [record.as_os_str(), component.as_os_str()];
    let output = replay(arguments.into_iter().chain(more.iter().map(std::ffi::OsStr::new)));
    let (said, wrong) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    assert!(said.ends_with("nothing differs\n"), "{said}{wrong}");
    said
}

/// Replays a record and gives the error. Something differs.
fn differs(record: &Path, component: &Path, more: &[&str]) -> String {
    let arguments = [record.as_os_str(), component.as_os_str()];
    let output = replay(arguments.into_iter().chain(more.iter().map(std::ffi::OsStr::new)));
    let (said, wrong) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{wrong}");
    // The filter's own log lines come before it.
    let mut errors = wrong.lines().filter(|line| line.starts_with("rbdkit-filter: error: "));
    let line = errors.next().unwrap_or_default().to_string();
    assert!(!line.is_empty() && errors.next().is_none(), "{wrong}");
    line
}

/// The error about a record that cannot be used.
fn refused(arguments: &[&str]) -> String {
    let output = replay(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
    let wrong = text(&output.stderr);
    assert_eq!(wrong.lines().count(), 1, "{wrong}");
    wrong.trim_end().to_string()
}

/// The calls of a record as JSON.
fn calls(record: &Path) -> Vec<Value> {
    let output = replay([record.as_os_str(), "--show".as_ref(), "--json".as_ref()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    values.filter(|value| value["entry"] == "call").collect()
}

/// A component that XORs every byte with this one, in both directions.
fn xor(dir: &TempDir, key: u8) -> PathBuf {
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "xor" (func $xor (param i32 i32 i32 i32 i32 i64)))
    (data (i32.const 3000) "\{key:02x}")
    (func $all (param i32)
        (call $xor (i32.const 0) (i32.const 0) (local.get 0) (i32.const 3000) (i32.const 1) (i64.const 0)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i32.eqz (i32.load8_u (i32.const 2048))) (then (call $all (local.get 1))))
        (i32.const 2048))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $all (local.get 1))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#
    );
    dir.file(&format!("xor{key}.wasm"), &Guest::new("xor", &["reads", "writes"], &body).component(0))
}

/// Bytes of which none is like its neighbours, with a hole in the middle.
fn image() -> Vec<u8> {
    let mut bytes = rbdkit_tests::Rng::new(1).bytes(SIZE);
    bytes[SIZE / 2..SIZE / 2 + (1 << 20)].fill(0);
    bytes
}

/// Calls of every kind, and two that fail.
const CALLS: &str = "
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.connect_uri(uri)
h.pwrite(b'x' * 5000, 1000)
h.pwrite(b'y' * 512, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(5, 999)[1:] == b'xxxx'
h.trim(65536, 65536)
h.zero(100000, 3)
h.zero(70000, 200000, nbd.CMD_FLAG_NO_HOLE)
h.pread(1 << 20, 65536)
h.cache(65536, 0)
h.block_status(1 << 20, 0, lambda *arguments: 0)
h.flush()
h.pwrite(b'after the flush', 3)
h.shutdown()
";

/// Serves a file through a filter, lets clients work, and gives the record.
fn session(dir: &TempDir, layer: &[&str], after: &[&str], payloads: bool) -> (PathBuf, Outcome) {
    let (disk, record) = (dir.file("disk.img", &image()), dir.join("session.rec"));
    let option = format!("--record={}", record.display());
    let mut launch = Launch::new(layer).arg(option).args(["file", disk.to_str().unwrap()]).args(after);
    if payloads {
        launch = launch.arg("--record-payloads");
    }
    let server = launch.start();
    let uri = server.uri();
    let copy = dir.join("copy.img");
    tool("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]).ok();
    nbdsh(&uri, CALLS).ok();
    let changed: Vec<u8> = std::fs::read(&copy).unwrap().iter().rev().copied().collect();
    std::fs::write(&copy, changed).unwrap();
    tool("nbdcopy", [copy.to_str().unwrap(), uri.as_str()]).ok();
    let fio = [
        "--name=load",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bs=512-64k",
        // No two writes of the same bytes at once: which of them is the last is not in a record.
        "--size=1500k",
        "--offset_increment=1500k",
        "--serialize_overlap=1",
        "--io_size=1m",
        "--iodepth=16",
        "--numjobs=2",
        "--norandommap",
        "--minimal",
    ];
    tool("fio", fio.into_iter().map(String::from).chain([format!("--uri={uri}")])).ok();
    (record, server.stop())
}

#[test]
fn what_clients_do_through_a_filter_runs_again_without_a_difference() {
    for (name, parameter) in
        [("nofilter", None), ("cow", None), ("cache", None), ("offset", Some("offset=4096")), ("readahead", None)]
    {
        // One filter that only passes on and one that keeps blocks show what digests are good for.
        for payloads in [true, false].into_iter().filter(|payloads| *payloads || ["nofilter", "cow"].contains(&name)) {
            let dir = TempDir::new();
            let parameters: Vec<&str> = parameter.into_iter().collect();
            let (record, outcome) = session(&dir, &["--filter", name], &parameters, payloads);
            assert_eq!(outcome.stderr.contains("guard it as the disk itself"), payloads, "{}", outcome.stderr);
            let said = same(&record, &filter(name), &parameters);
            assert!(said.contains(&format!("filter {name}, recorded by rbdkit ")), "{said}");
            assert_eq!(said.contains("the record has digests only"), !payloads, "{said}");
            assert!(!said.contains("the record is not whole"), "{said}");
            let kinds = calls(&record);
            for kind in ["open", "pread", "pwrite", "flush", "trim", "zero", "extents", "finalize", "close"] {
                let is_there = |call: &Value| call["kind"] == kind && call["gate"] == "above";
                assert!(kinds.iter().any(is_there), "{name}: no {kind}");
            }
        }
    }
}

#[test]
fn a_filter_that_differs_in_one_byte_is_told_by_its_first_difference() {
    let dir = TempDir::new();
    let (right, wrong) = (xor(&dir, 255), xor(&dir, 254));
    let option = format!("--wasm-filter={}", right.display());
    let (record, _) = session(&dir, &[&option], &[], true);
    same(&record, &right, &["--exact"]);
    let line = differs(&record, &wrong, &["--exact"]);
    assert!(line.contains(", pread of ") && line.contains(": expected ") && line.contains(", got "), "{line}");
    // A program reads the same.
    let (junit, name) = (dir.join("result.xml"), record.to_str().unwrap());
    let junit_option = format!("--junit={}", junit.display());
    let output = replay([name, wrong.to_str().unwrap(), "--json", &junit_option]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["passed"], false);
    assert!(json["differing"].as_u64().unwrap() > 1);
    // It is in a read of nbdcopy, which has read the file as it was.
    let first = &json["differences"][0];
    let byte = image()[first["offset"].as_u64().unwrap() as usize];
    for (field, key) in [("expected", 255), ("got", 254)] {
        let shown = first[field].as_str().unwrap();
        assert!(shown.starts_with(&format!("{:02x} ", byte ^ key)), "{json}");
    }
    assert!(line.contains(first["message"].as_str().unwrap()), "{line}");
    assert!(std::fs::read_to_string(&junit).unwrap().contains("failures=\"1\""));
}

#[test]
fn a_session_that_only_writes_is_compared_by_what_is_left_below() {
    let dir = TempDir::new();
    let (right, wrong) = (xor(&dir, 7), xor(&dir, 6));
    let record = dir.join("writes.rec");
    let server = Launch::new(["--record-payloads", "--wasm-filter", right.to_str().unwrap(), "memory", "1M"])
        .arg(format!("--record={}", record.display()))
        .start();
    nbdsh(&server.uri(), "h = nbd.NBD(); h.connect_uri(uri); h.pwrite(b'abc', 1000); h.zero(10, 0); h.shutdown()").ok();
    server.stop();
    same(&record, &right, &[]);
    let line = differs(&record, &wrong, &[]);
    assert_eq!(line, "rbdkit-filter: error: below, at byte 1000: expected 66 65 64, got 67 64 65");
    // Another filter sends the bytes elsewhere.
    let line = differs(&record, &filter("offset"), &["offset=512"]);
    assert!(line.contains(": expected a size of 1048576 bytes, got 1048064 bytes"), "{line}");
}

#[test]
fn errors_of_the_layer_below_come_again() {
    let dir = TempDir::new();
    let record = dir.join("errors.rec");
    let script = "pread=if [ $4 = 4096 ]; then echo ENOMEM >&2; exit 1; fi; dd if=/dev/zero bs=512 count=1 status=none";
    let server = Launch::new(["--record-payloads", "--filter=nofilter", "eval", "get_size=echo 1M", script])
        .arg(format!("--record={}", record.display()))
        .start();
    let script = "h = nbd.NBD(); h.connect_uri(uri); h.pread(512, 0)\nprint(fails(lambda: h.pread(512, 4096)))";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "ENOMEM\n");
    server.stop();
    same(&record, &filter("nofilter"), &["--exact"]);
    let line = differs(&record, &filter("error"), &["error=EIO", "error-rate=100%"]);
    assert!(line.contains("pread of 512 bytes at 0: expected success, got "), "{line}");
}

#[test]
fn a_client_that_left_before_its_answer_leaves_in_the_replay_too() {
    let dir = TempDir::new();
    let record = dir.join("left.rec");
    let server = Launch::new(["--record-payloads", "--filter=delay", "memory", "1M", "delay-read=3600"])
        .arg(format!("--record={}", record.display()))
        .start();
    let script = "h = nbd.NBD(); h.connect_uri(uri); h.aio_pread(nbd.Buffer(512), 0); h.poll(0)";
    nbdsh(&server.uri(), script).ok();
    let is_closed = |_: &_| calls(&record).iter().any(|call| call["kind"] == "close" && call["result"] == "ok");
    server.wait_until("the connection's end is in the record", is_closed);
    server.stop();
    assert!(calls(&record).iter().any(|call| call["kind"] == "pread" && call["ok"] == false));
    same(&record, &filter("delay"), &["delay-read=3600"]);
}

#[test]
fn calls_that_overlapped_overlap_again_and_others_do_not() {
    let dir = TempDir::new();
    let record = dir.join("overlap.rec");
    let parameter = "delay-read=400ms";
    let server = Launch::new(["--record-payloads", "--filter=delay", "memory", "1M", parameter])
        .arg(format!("--record={}", record.display()))
        .start();
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
cookies = [h.aio_pread(nbd.Buffer(512), number * 512) for number in range(16)]
while cookies:
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
    if cookies:
        h.poll(-1)
h.pread(512, 0)
h.pread(512, 0)
h.shutdown()
";
    nbdsh(&server.uri(), script).ok();
    server.stop();
    let component = filter("delay");
    let output = replay([record.as_os_str(), component.as_os_str(), parameter.as_ref(), "--json".as_ref()]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((json["passed"].as_bool(), json["below"]["pread"]["now"].as_u64()), (Some(true), Some(18)), "{json}");
    // The filter sleeps for 0.4 s: once for the 16 reads at once, and once for each of the other
    // two. One after the other they would take 7.2 s.
    let seconds = json["seconds"].as_f64().unwrap();
    assert!((1.2..6.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_record_says_what_happened_in_lines() {
    let dir = TempDir::new();
    let record = dir.join("lines.rec");
    let server =
        Launch::new(["--filter=nofilter", "memory", "1M"]).arg(format!("--record=memory:{}", record.display())).start();
    nbdsh(&server.uri(), "h = nbd.NBD(); h.connect_uri(uri); h.pwrite(b'abc', 1000); h.pread(512, 0); h.shutdown()")
        .ok();
    server.stop();
    let output = replay([record.to_str().unwrap(), "--show"]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    // The first half of the SHA-256 of "abc".
    let write = " above pwrite offset=1000 length=3 sha256=ba7816bf8f01cfea414140de5dae2223 -> ok (";
    for part in
        ["plugin memory, recorded by rbdkit ", write, " above pread offset=0 length=512 -> ok zeroes (", "count"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let line = refused(&[record.to_str().unwrap(), filter("nofilter").to_str().unwrap()]);
    assert!(line.contains("the record is of the plugin memory, below which nothing was recorded"), "{line}");
    assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_record_of_a_server_that_was_killed_is_read_to_its_last_whole_entry() {
    let dir = TempDir::new();
    let record = dir.join("killed.rec");
    let server = Launch::new(["--record-payloads", "--filter=cow", "memory", "1M"])
        .arg(format!("--record={}", record.display()))
        .start();
    let mut client = server.client();
    client.write(0, &[7; 4096]).unwrap();
    client.read(0, 8192).unwrap();
    // The answer may come before the thread has written its entry.
    let is_written = |_: &_| calls(&record).iter().any(|call| call["kind"] == "pread" && call["gate"] == "above");
    server.wait_until("the read is in the record", is_written);
    server.kill();
    let said = same(&record, &filter("cow"), &[]);
    assert!(said.contains("the record has no end: the server was killed, or still runs"), "{said}");
    let whole = std::fs::read(&record).unwrap();
    let cut = dir.file("cut.rec", &whole[..whole.len() - 1]);
    let said = same(&cut, &filter("cow"), &[]);
    assert!(said.contains("the file ends in the middle of the entry at byte "), "{said}");
}

#[test]
fn a_record_that_is_damaged_is_refused_in_a_line_that_names_the_byte() {
    let dir = TempDir::new();
    let record = dir.join("whole.rec");
    let server =
        Launch::new(["--filter=nofilter", "memory", "1M"]).arg(format!("--record={}", record.display())).start();
    server.client().write(0, &[1; 100]).unwrap();
    server.stop();
    let whole = std::fs::read(&record).unwrap();
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let file = dir.file("damaged.rec", &bytes);
        let shown = refused(&[file.to_str().unwrap(), "--show"]);
        let run = refused(&[file.to_str().unwrap(), filter("nofilter").to_str().unwrap()]);
        assert_eq!(shown, run);
        shown.rsplit_once("damaged.rec: ").unwrap().1.to_string()
    };
    let middle = whole.len() / 2;
    let line = damaged(&|bytes| bytes[middle] ^= 4);
    assert!(line.starts_with("byte ") && line.contains("damaged"), "{line}");
    assert_eq!(damaged(&|bytes| bytes[13] = 0xff), "byte 12: the entry's header is damaged");
    assert_eq!(damaged(&|bytes| bytes[8] = 3), "is a record of version 3, and this program reads versions 1 to 2");
    assert_eq!(damaged(&|bytes| bytes[0] = 0), "is not a record of rbdkit --record");
    assert_eq!(damaged(&|bytes| bytes.truncate(20)), "byte 12: the record ends before its first entry");
    let other = filter("nofilter");
    assert!(refused(&[other.to_str().unwrap(), "--show"]).ends_with("is not a record of rbdkit --record"));
    assert!(refused(&["/dev/zero", "--show"]).ends_with("/dev/zero: is not a file"));
    assert!(refused(&[record.to_str().unwrap()]).ends_with("which filter? FILTER.wasm follows the record, or --show"));
}

#[test]
fn a_record_ends_at_its_limit_and_the_server_serves_on() {
    let dir = TempDir::new();
    let record = dir.join("limited.rec");
    let server = Launch::new(["--record-payloads", "--record-limit=128K", "--filter=nofilter", "memory", "1M"])
        .arg(format!("--record={}", record.display()))
        .start();
    let mut client = server.client();
    for block in 0..64 {
        client.write(block * 4096, &[block as u8 + 1; 4096]).unwrap();
    }
    assert_eq!(client.read(63 * 4096, 4096).unwrap(), vec![64; 4096]);
    drop(client);
    let said = server.stop().stderr;
    assert!(said.contains("the record ends here, and the server serves on: it had reached its limit"), "{said}");
    assert!(std::fs::metadata(&record).unwrap().len() <= 128 << 10);
    let said = same(&record, &filter("nofilter"), &[]);
    assert!(said.contains("entries are missing: it had reached its limit (--record-limit)"), "{said}");
    assert!(said.contains("what is left below was not compared"), "{said}");
}

#[test]
fn a_mistake_in_the_options_is_one_line_and_leaves_no_file() {
    let dir = TempDir::new();
    let (foreign, record) = (dir.file("disk.img", b"somebody's data"), dir.join("new.rec"));
    for (options, line) in [
        (vec![format!("--record=cow:{}", record.display())], "there is no layer cow: there are nofilter, memory"),
        (vec![format!("--record={}", foreign.display())], "disk.img: exists and is not a record"),
        (vec![format!("--record={}/none/x", dir.path().display())], "/none/x: No such file or directory"),
        (vec!["--record-payloads".to_string()], "--record-payloads: --record is not given"),
        (vec!["--record-limit=1M".to_string()], "--record-limit: --record is not given"),
        (vec![format!("--record={}", record.display()), "--record-limit=1K".to_string()], "is less than 64K"),
    ] {
        let outcome = Launch::new(["--filter=nofilter", "memory", "1M"]).args(&options).try_start().err().unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{options:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{options:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(line), "{options:?}: {}", outcome.stderr);
    }
    assert!(!record.exists());
    // The record is open when the start fails.
    let outcome =
        Launch::new(["-P", "/nonexistent/pid", "null"]).arg(format!("--record={}", record.display())).try_start();
    assert!(outcome.err().unwrap().stderr.contains("/nonexistent/pid"));
    assert!(!record.exists());
    assert_eq!(std::fs::read(&foreign).unwrap(), b"somebody's data");
}

#[test]
fn a_replay_has_the_parameters_and_the_clients_of_the_record() {
    let dir = TempDir::new();
    let record = dir.join("parameters.rec");
    let server = Launch::new(["--record-payloads", "--filter=offset", "memory", "1M", "offset=4096", "range=64k"])
        .arg(format!("--record={}", record.display()))
        .start();
    let script = "
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_list(lambda *arguments: 0)
h.opt_go()
h.pwrite(b'abc', 1000)
h.shutdown()";
    nbdsh(&server.uri(), script).ok();
    server.stop();
    let output = replay([record.as_os_str(), "--show".as_ref()]);
    let shown = text(&output.stdout);
    for part in ["  parameter offset '4096'", "  parameter range '65536'", " above list_exports -> ok 1 exports:"] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    assert!(shown.contains(" above preconnect from ") && shown.contains(" below preconnect from "), "{shown}");
    let said = same(&record, &filter("offset"), &[]);
    assert!(said.contains("parameters of the record: offset, range\n"), "{said}");
    // What is given comes first.
    let line = differs(&record, &filter("offset"), &["range=32k"]);
    assert!(line.contains(": expected a size of 65536 bytes, got 32768 bytes"), "{line}");
    // A filter without these parameters runs without them.
    let output = replay([record.as_os_str(), filter("nofilter").as_os_str()]);
    let said = text(&output.stdout);
    assert!(said.contains("parameters that the filter does not have: offset, range\n"), "{said}");
}

#[test]
fn what_the_layer_below_said_of_exports_and_clients_comes_again() {
    let dir = TempDir::new();
    let record = dir.join("exports.rec");
    let list = "list_exports=printf 'INTERLEAVED\\none\\nfirst\\ntwo\\nsecond\\n'";
    let server = Launch::new(["--record-payloads", "--filter=nofilter", "eval", "get_size=echo 1M"])
        .args([list, "default_export=echo two", "pread=dd if=/dev/zero bs=$3 count=1 status=none"])
        .arg(format!("--record={}", record.display()))
        .start();
    let script = "
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_list(lambda *arguments: 0)
h.set_export_name('')
h.opt_go()
h.pread(512, 0)
h.shutdown()";
    nbdsh(&server.uri(), script).ok();
    server.stop();
    let kinds = calls(&record);
    for gate in ["above", "below"] {
        for (kind, result) in [("list_exports", "ok 2 exports: 'one' 'two'"), ("default_export", "ok 'two'")] {
            let is_there = |call: &Value| call["gate"] == gate && call["kind"] == kind && call["result"] == result;
            assert!(kinds.iter().any(is_there), "no {gate} {kind} {result} in {kinds:#?}");
        }
    }
    same(&record, &filter("nofilter"), &["--exact"]);
}

/// It was made by rbdkit of the day before version 2, with `--filter=cow cow-block-size=4k` over a
/// file, by a client that wrote 700 bytes at 1000, read 5 bytes at 999 and flushed.
#[test]
fn a_record_of_version_1_still_runs() {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/record/version-1.rec");
    let said = same(&record, &filter("cow"), &["cow-block-size=4k", "--exact"]);
    assert!(said.contains("answers compared") && !said.contains("parameters of the record"), "{said}");
    let line = differs(&record, &filter("offset"), &["offset=512"]);
    assert!(line.contains(": expected a size of 65536 bytes, got 65024 bytes"), "{line}");
}

#[test]
fn a_record_has_no_secret_and_no_name_of_a_file() {
    let dir = TempDir::new();
    let record = dir.join("secret.rec");
    let named = dir.join("delay-trigger");
    let trigger = format!("error-file={}", named.display());
    let server = Launch::new(["--record-payloads", "--filter=error", "memory", "1M", "error-rate=0%", &trigger])
        .arg(format!("--record={}", record.display()))
        .start();
    nbdsh(&server.uri(), "h = nbd.NBD(); h.connect_uri(uri); h.pread(512, 0); h.shutdown()").ok();
    server.stop();
    let bytes = std::fs::read(&record).unwrap();
    assert!(!bytes.windows(13).any(|word| word == b"delay-trigger"));
    let shown = text(&replay([record.as_os_str(), "--show".as_ref()]).stdout);
    assert!(shown.contains("  parameter error-file set\n"), "{shown}");
    let line = refused(&[record.to_str().unwrap(), filter("error").to_str().unwrap()]);
    let why = "the record says that error-file was set, and does not have its value: give error-file=VALUE";
    assert!(line.ends_with(why), "{line}");
    same(&record, &filter("error"), &[&trigger]);
}
