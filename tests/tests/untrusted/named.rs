//! What the operator names in a filter's parameters: scripts and files that are kept. And sums,
//! which a filter keeps without being granted anything.

use std::path::Path;
use std::time::Duration;

use rbdkit_tests::raw::cmd;
use rbdkit_tests::server::descendants;
use rbdkit_tests::{Client, Launch, Server, TempDir, nbdsh, wait};
use rustix::process::Signal;

use crate::guest::Guest;

/// A block for one step of a test, in bytes.
const STEP: u64 = 512;

/// Reads run a script: block n that of the parameter with the letter n, from `a` on. The answer is
/// in the first 16 bytes of the buffer: 0, the status, the place and the length of the output; or 1
/// and the errno. From block 16 on the script of `a` gets a variable: PATH, http_proxy, one with a
/// zero byte, `ok`. Block 32 runs `a` for ever.
const RUNS_SCRIPTS: &str = r#"
    (import "rbdkit:filter/scripts@0.1.0" "run" (func $run (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (data (i32.const 3000) "abcdefgh")
    (data (i32.const 3100) "PATHhttp_proxyokx\00")
    (func $name (param i32 i32 i32 i32)
        (i32.store (i32.const 3200) (local.get 0)) (i32.store (i32.const 3204) (local.get 1))
        (i32.store (i32.const 3208) (local.get 2)) (i32.store (i32.const 3212) (local.get 3)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (local $n i32) (local $variables i32)
        (local.set $n (i32.wrap_i64 (i64.shr_u (local.get 0) (i64.const 9))))
        (if (i32.eq (local.get $n) (i32.const 32)) (then (loop $l
            (call $run (i32.const 3000) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
            (br $l))))
        (if (i32.ge_u (local.get $n) (i32.const 16)) (then
            (local.set $variables (i32.const 1))
            (if (i32.eq (local.get $n) (i32.const 16)) (then
                (call $name (i32.const 3100) (i32.const 4) (i32.const 3116) (i32.const 1))))
            (if (i32.eq (local.get $n) (i32.const 17)) (then
                (call $name (i32.const 3104) (i32.const 10) (i32.const 3116) (i32.const 1))))
            (if (i32.eq (local.get $n) (i32.const 18)) (then
                (call $name (i32.const 3114) (i32.const 2) (i32.const 3116) (i32.const 2))))
            (if (i32.eq (local.get $n) (i32.const 19)) (then
                (call $name (i32.const 3114) (i32.const 2) (i32.const 3116) (i32.const 1))))
            (local.set $n (i32.const 0))))
        (call $run (i32.add (i32.const 3000) (local.get $n)) (i32.const 1) (i32.const 0)
            (i32.const 3200) (local.get $variables) (i32.const 2048))
        (call $write (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 16))
        (i32.const 1200))"#;

/// The errnos of the contract that are expected here, by their numbers.
const ENOENT: u8 = 1;
const EINVAL: u8 = 4;
const EOVERFLOW: u8 = 8;
const ETIMEDOUT: u8 = 10;

/// What a script answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The status and the bytes of output.
    Ran(i32, u32),
    Failed(u8),
}

fn run(client: &mut Client, block: u64) -> Answer {
    let bytes = client.read(block * STEP, STEP as u32).expect("a read");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    match bytes[0] {
        0 => Answer::Ran(word(4) as i32, word(12)),
        _ => Answer::Failed(bytes[4]),
    }
}

fn runs_scripts(dir: &TempDir, scripts: &[&str]) -> Launch {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let guest =
        Guest { params: names.map(|name| (name, "script")).to_vec(), ..Guest::new("runs", &["reads"], RUNS_SCRIPTS) };
    let file = dir.file("runs.wasm", &guest.component(0));
    let given = names.iter().zip(scripts).map(|(name, script)| format!("{name}={script}"));
    Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).args(given)
}

/// No program that the server or its helpers have started runs any more, but the helpers.
fn no_script_runs(server: &Server) {
    server.wait_until("the end of all scripts", |server| {
        descendants(server.pid()).iter().all(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.is_empty() || String::from_utf8_lossy(&command).contains("--rbdkit-")
        })
    });
}

#[test]
fn each_script_has_its_exact_outcome() {
    let dir = TempDir::new();
    let scripts = [
        "echo out $ok; echo to the log >&2; exit 3",
        "yes",
        "exec sleep 600",
        "kill -9 $$",
        "head -c 65536 /dev/zero",
        "read line || echo -n nothing",
        "trap '' TERM; sleep 600 & sleep 600",
    ];
    let server = runs_scripts(&dir, &scripts).args(["--filter-limit", "script-time=300ms"]).start();
    let mut client = server.client();
    let expected = [
        Answer::Ran(3, 4),
        Answer::Failed(EOVERFLOW),
        Answer::Failed(ETIMEDOUT),
        Answer::Ran(137, 0),
        Answer::Ran(0, 65536),
        Answer::Ran(0, 7),
        Answer::Failed(ETIMEDOUT),
        Answer::Failed(ENOENT),
    ];
    for (block, expected) in expected.into_iter().enumerate() {
        assert_eq!(run(&mut client, block as u64), expected, "{block}");
    }
    for block in [16, 17, 18] {
        assert_eq!(run(&mut client, block), Answer::Failed(EINVAL), "{block}");
    }
    assert_eq!(run(&mut client, 19), Answer::Ran(3, 6), "the variable is there");
    no_script_runs(&server);
    client.disconnect();
    let log = server.stop().stderr;
    for line in [
        "rbdkit: warning: runs: a: to the log",
        "rbdkit: error: runs: b: the script prints too much",
        "rbdkit: error: runs: a: the name of a variable ends in _proxy",
    ] {
        assert!(log.lines().any(|said| said == line), "{line}\n{log}");
    }
}

#[test]
fn a_script_that_loops_ends_with_its_client_and_with_the_server() {
    let dir = TempDir::new();
    let mut server = runs_scripts(&dir, &["sleep 0.01", "exec sleep 600"]).start();
    for block in [32, 1] {
        let mut looping = server.client();
        looping.submit(cmd::READ, 0, block * STEP, STEP as u32, &[]).expect("a request");
        server.wait_until("a script", |server| {
            descendants(server.pid()).iter().any(|pid| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                command.starts_with(b"sleep")
            })
        });
        drop(looping);
        no_script_runs(&server);
    }
    // Another client is served meanwhile and after it.
    let mut hangs = server.client();
    hangs.submit(cmd::READ, 0, STEP, STEP as u32, &[]).expect("a request");
    let mut other = server.client();
    assert_eq!(run(&mut other, 0), Answer::Ran(0, 0));
    assert!(server.is_alive());
    let helpers = descendants(server.pid());
    server.signal(Signal::TERM);
    server.wait_for_end();
    wait::until("the end of the helper and its scripts", || {
        helpers.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn an_event_that_runs_a_script_in_a_loop_costs_nobody_and_ends_with_the_server() {
    let body = r#"
    (import "rbdkit:filter/scripts@0.1.0" "run" (func $run (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/alarms@0.1.0" "set" (func $set (param i32 i32 i64 i32)))
    (data (i32.const 3000) "a")
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32)
        (call $set (i32.const 2) (i32.const 0) (i64.const 0) (i32.const 2048))
        (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))
    (func (export "rbdkit:filter/on-alarm@0.1.0#alarm") (param i32 i32)
        (loop $l
            (call $run (i32.const 3000) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
            (br $l)))"#;
    let dir = TempDir::new();
    let guest = Guest { params: vec![("a", "script")], ..Guest::new("loops", &["lifecycle", "on-alarm"], body) };
    let file = dir.file("loops.wasm", &guest.component(0));
    let ran = dir.join("ran");
    let script = format!("a=echo >>{}; sleep 0.01", ran.display());
    let server = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M", &script]).start();
    let runs = || std::fs::read(&ran).map_or(0, |bytes| bytes.len());
    wait::until("ten runs", || runs() >= 10);
    let before = runs();
    let mut client = server.client();
    for _ in 0..100 {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    wait::until("more runs", || runs() > before);
    let helpers = descendants(server.pid());
    server.signal(Signal::TERM);
    server.wait_for_end();
    wait::until("the end of the helper and its scripts", || {
        helpers.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn no_more_scripts_run_at_once_than_the_limit_says() {
    let dir = TempDir::new();
    let running = dir.join("running");
    std::fs::create_dir(&running).expect("a directory");
    let script =
        format!("cd {} && touch $$ && n=$(ls | wc -l) && sleep 0.02 && rm $$ && test $n -le 3", running.display());
    let server = runs_scripts(&dir, &[&script]).args(["--filter-limit", "runs:scripts=3"]).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..5 {
                    assert_eq!(run(&mut client, 0), Answer::Ran(0, 0));
                }
            });
        }
    });
    no_script_runs(&server);
}

/// Reads, writes and flushes go to the kept file of the parameter `kept`. Trim punches it.
const KEEPS: &str = r#"
    (import "rbdkit:filter/storage@0.1.0" "pread" (func $read (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/storage@0.1.0" "pwrite" (func $write (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/storage@0.1.0" "flush" (func $flush (param i32 i32 i32 i32)))
    (import "rbdkit:filter/storage@0.1.0" "punch" (func $punch (param i32 i32 i32 i64 i64 i32)))
    (data (i32.const 3000) "kept")
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $read (i32.const 3000) (i32.const 4) (i32.const 0) (local.get 0) (local.get 1) (i32.const 0)
            (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $write (i32.const 3000) (i32.const 4) (i32.const 0) (local.get 0) (local.get 1) (i32.const 0)
            (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $flush (i32.const 3000) (i32.const 4) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/trims@0.1.0#trim") (param i64 i64 i32) (result i32)
        (call $punch (i32.const 3000) (i32.const 4) (i32.const 0) (local.get 0) (local.get 1) (i32.const 2048))
        (i32.const 2048))"#;

fn keeps(dir: &TempDir) -> Launch {
    let guest = Guest::new("keeps", &["reads", "writes", "flushes", "trims"], KEEPS);
    let guest = Guest { params: vec![("kept", "path-readwrite")], ..guest };
    let file = dir.file("keeps.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(["memory", "64M"]).path("kept", &dir.join("kept"))
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let dir = TempDir::new();
    let server = keeps(&dir).start();
    let content = |client: u64| -> Vec<u8> { (0..256 << 10).map(|n| (n * (client + 3) % 251) as u8).collect() };
    // Long and short writes of many clients at once.
    std::thread::scope(|scope| {
        for client in 0..8_u64 {
            let (server, bytes) = (&server, content(client));
            scope.spawn(move || {
                let (mut connection, base) = (server.client(), client << 20);
                connection.write(base, &bytes[..200 << 10]).expect("a long write");
                for piece in 50..64 {
                    let at = piece << 12;
                    connection.write(base + at as u64, &bytes[at..at + 4096]).expect("a short write");
                }
                connection.flush().expect("a flush");
            });
        }
    });
    server.kill();
    let server = keeps(&dir).start();
    let mut client = server.client();
    for number in 0..8_u64 {
        assert!(client.read(number << 20, 256 << 10).expect("a read") == content(number), "client {number}");
    }
    assert_eq!(client.read((8 << 20) + 5, 3), Ok(vec![0; 3]), "beyond the end of the file");
    nbdsh(&server.uri(), "h.connect_uri(uri)\nh.trim(4096, 8192)\nassert h.pread(4096, 8192) == bytes(4096)").ok();
}

#[test]
fn a_second_server_does_not_get_the_file_while_the_first_has_it() {
    let dir = TempDir::new();
    let first = keeps(&dir).start();
    let outcome = keeps(&dir).try_start().err().expect("it is refused");
    let kept = dir.join("kept");
    let line =
        format!("rbdkit: error: kept={}: another server, or another filter of this one, has it open\n", kept.display());
    assert_eq!(outcome.stderr, line);
    first.kill();
    keeps(&dir).start();
}

#[test]
fn a_kept_file_takes_no_more_than_its_limit() {
    const ENOSPC: u32 = 28;
    let dir = TempDir::new();
    let server = keeps(&dir).args(["--filter-limit", "keeps:storage=1M"]).start();
    let mut client = server.client();
    let step = vec![7; 64 << 10];
    let written: Vec<Result<(), u32>> = (0..32).map(|nth| client.write(nth << 16, &step)).collect();
    assert_eq!(written, [vec![Ok(()); 16], vec![Err(ENOSPC); 16]].concat());
    assert_eq!(client.read(15 << 16, 1), Ok(vec![7]));
    assert_eq!(std::fs::metadata(dir.join("kept")).expect("the file").len(), 1 << 20);
    // Without the limit: the size of the export, a 64th of it, and 16 MiB.
    drop(client);
    server.stop();
    let server = keeps(&dir).start();
    let mut client = server.client();
    assert_eq!(client.write((64 << 20) - 4096, &[1; 4096]), Ok(()));
    client.disconnect();
}

/// Each read adds to a thousand new keys. The byte at the beginning of the buffer is the last
/// errno, and the next the number of keys in hundreds.
const COUNTS: &str = r#"
    (import "rbdkit:filter/counters@0.1.0" "add" (func $add (param i64 i64 i32)))
    (import "rbdkit:filter/counters@0.1.0" "list" (func $list (param i32)))
    (import "rbdkit:filter/counters@0.1.0" "get" (func $get (param i64) (result i64)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (local $n i64)
        (loop $l
            (call $add (i64.add (i64.mul (local.get 0) (i64.const 1000)) (local.get $n)) (i64.const -1)
                (i32.const 2048))
            (local.set $n (i64.add (local.get $n) (i64.const 1)))
            (br_if $l (i64.lt_u (local.get $n) (i64.const 1000))))
        (call $list (i32.const 2056))
        (i32.store (i32.const 2064) (i32.load (i32.const 2060)))
        (i64.store (i32.const 2072) (call $get (i64.const 0)))
        (call $write (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 32))
        (i32.const 1200))"#;

#[test]
fn sums_with_more_keys_than_there_may_be_are_refused_and_the_others_stay() {
    let dir = TempDir::new();
    let file = dir.file("counts.wasm", &Guest::new("counts", &["reads"], COUNTS).component(0));
    let server = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).start();
    let mut answers = Vec::new();
    for block in [0, 1, 2, 3, 4, 5, 0] {
        let bytes = server.client().read(block, 512).expect("a read");
        let keys = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
        let first = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
        assert_eq!(first, u64::MAX, "a sum ends there");
        answers.push(((bytes[0] == 1).then_some(bytes[1]), keys));
    }
    const ENOSPC: u8 = 5;
    let full = (Some(ENOSPC), 4096);
    assert_eq!(answers, [(None, 1000), (None, 2000), (None, 3000), (None, 4000), full, full, (None, 4096)]);
    assert_eq!(server.stop().stderr, "");
}

/// Bounds on the end of the server are compared with what a cleanup may take.
#[test]
fn a_script_of_the_cleanup_that_never_ends_does_not_hold_the_server() {
    let body = r#"
    (import "rbdkit:filter/scripts@0.1.0" "run" (func $run (param i32 i32 i32 i32 i32 i32)))
    (data (i32.const 3000) "a")
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup")
        (call $run (i32.const 3000) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048)))"#;
    let dir = TempDir::new();
    let guest = Guest { params: vec![("a", "script")], ..Guest::new("ends", &["lifecycle"], body) };
    let file = dir.file("ends.wasm", &guest.component(0));
    let began = dir.join("began");
    let script = format!("a=touch {}; exec sleep 600", began.display());
    let server = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).arg(script).start();
    let stopping = std::time::Instant::now();
    assert!(server.stop().status.success());
    assert!(began.exists(), "the script ran");
    assert!(stopping.elapsed() < Duration::from_secs(60), "{:?}", stopping.elapsed());
}
