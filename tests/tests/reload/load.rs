//! Many reloads under load: no request fails, no byte differs, and nothing is left behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rbdkit_tests::{Launch, Server, TempDir, tool};

use super::versions::{State, filter, text, version_of};
use super::{description, reload, replace, seen};

/// What fio writes and verifies.
const LOAD: u64 = 16 << 20;

/// The blocks behind it that show the versions.
const OUTER: u64 = LOAD;
const INNER: u64 = LOAD + 4096;

/// How many reloads, unless `RBDKIT_RELOADS` says otherwise.
const RELOADS: u32 = 100;

/// How many different versions there are.
const VERSIONS: u32 = 16;

/// By how many bytes the server's memory may grow between a quarter of the reloads and the last
/// one. One version takes about 300 KiB.
const GROWTH: u64 = 24 << 20;

/// How many bytes fio writes between two reloads, at least.
const BETWEEN: u64 = 256 << 10;

/// How many bytes the server has written.
fn written(server: &Server) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("the server's counters");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("wchar");
    line.trim().parse().expect("a number")
}

/// Ends the load when it is dropped, also when the test fails.
struct EndsLoad<'a>(&'a AtomicBool);

impl Drop for EndsLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes and verifies until `enough` is set.
fn load(uri: &str, enough: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while !enough.load(Ordering::Relaxed) || rounds == 0 {
        let output = tool(
            "fio",
            [
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={uri}"),
                &format!("--size={LOAD}"),
                "--rw=randwrite",
                "--bs=4k",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--do_verify=1",
                "--verify_backlog=64",
                "--iodepth=16",
                "--randrepeat=0",
                "--output-format=terse",
            ],
        )
        .ok();
        let fields: Vec<&str> = output.lines().rfind(|line| line.starts_with("3;")).unwrap_or("").split(';').collect();
        assert_eq!(fields.get(4), Some(&"0"), "fio says\n{output}");
        rounds += 1;
    }
    rounds
}

#[test]
fn reloads_under_load_cost_no_request_and_no_byte() {
    let count = std::env::var("RBDKIT_RELOADS").map_or(RELOADS, |text| text.parse().expect("RBDKIT_RELOADS"));
    let dir = TempDir::new();
    let outer = filter("outer", State::Stateless).component(OUTER);
    let inner = filter("inner", State::Replay).component(INNER);
    let disk = dir.sparse_file("disk.img", LOAD + 8192);
    let (outer_file, inner_file) =
        (dir.file("outer.wasm", &version_of(&outer, 0)), dir.file("inner.wasm", &version_of(&inner, 0)));
    let server = Launch::new(["-v", "-D", "nbdkit.backend.datapath=0", "--reload", "--wasm-filter"])
        .arg(&outer_file)
        .arg("--wasm-filter")
        .arg(&inner_file)
        .arg("file")
        .path("file", &disk)
        .start();
    let (enough, uri) = (AtomicBool::new(false), server.uri());
    let mut live = server.client();
    let (mut slowest, mut early) = (Duration::ZERO, 0);
    let rounds = std::thread::scope(|threads| {
        let load = threads.spawn(|| load(&uri, &enough));
        let ends = EndsLoad(&enough);
        for n in 1..=count {
            let before = written(&server);
            server.wait_until("requests between two reloads", |server| written(server) >= before + BETWEEN);
            // The same versions again and again, so that most of the code comes from the cache.
            let version = n % VERSIONS;
            replace(&outer_file, &version_of(&outer, version));
            replace(&inner_file, &version_of(&inner, version));
            let began = Instant::now();
            let lines = reload(&server, 2);
            for line in &lines {
                assert!(line.ends_with(" moved, 0 stay with the old version"), "{lines:?}");
            }
            let live = (seen(&mut live, OUTER), seen(&mut live, INNER));
            assert_eq!(live, (text(version), text(version)), "a live connection");
            slowest = slowest.max(began.elapsed());
            assert_eq!(description(&server), text(version), "a new connection");
            if n * 4 >= count && early == 0 {
                early = server.resident();
            }
        }
        drop(ends);
        load.join().expect("fio verifies")
    });
    println!("{count} reloads, {rounds} rounds of fio, the slowest reload took {slowest:?}");
    server.wait_until("memory that does not grow", |server| server.resident() < early + GROWTH);
    live.disconnect();
    let outcome = server.stop();
    assert!(outcome.status.success());
    assert!(outcome.stderr.contains("confined: no new privileges; "), "{}", outcome.stderr);
    for name in ["outer", "inner"] {
        let line =
            outcome.stderr.lines().rfind(|line| line.contains(&format!("{name}: at the end: "))).expect("counts");
        assert!(line.contains(" 0 faults") && line.ends_with("at most 2 versions of it at once"), "{line}");
    }
}
