//! What clients that attack the server take from others: nothing that others notice.
//!
//! An honest client reads 4 KiB again and again, in quiet times and under attack, in turns. So a
//! machine that is slow for a while is slow for both.

use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rbdkit_tests::attackers::{self, Attacker, Target, under_attack};
use rbdkit_tests::{Launch, Rng, Server, TempDir, free_port, seed};

#[path = "untrusted/guest.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod guest;

use guest::Guest;

const SIZE: u64 = 128 << 20;

/// Quiet times and attacks, in turns.
const ROUNDS: usize = 2;

/// Reads in each of them.
const READS: usize = 300;

/// The time between two reads.
const PACE: Duration = Duration::from_millis(3);

/// Below this a slow read is the scheduler's doing and not the attackers'.
const NOISE: Duration = Duration::from_millis(2);

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// A server that lists ten thousand exports, with a filter that has faults and one that computes in
/// the background, and with a cow filter.
fn start(dir: &TempDir) -> (Server, Target) {
    let exports = dir.join("exports");
    std::fs::create_dir(&exports).expect("a directory");
    for number in 0..10_000 {
        std::fs::write(exports.join(format!("export-{number}")), b"").expect("an export");
    }
    let disk = std::fs::File::create(exports.join("disk")).expect("a disk");
    disk.set_len(SIZE).expect("its size");
    // A trap in a function with a name of a megabyte: the log shows the names of functions.
    let mut faulty = Guest::reads("faulty", "", &format!("(call ${})", "n".repeat(1 << 20)));
    faulty.body.push_str(&format!("(func ${} (unreachable))", "n".repeat(1 << 20)));
    let (fault_at, compute_at) = (SIZE - 4096, SIZE - 8192);
    let (faulty, busy) =
        (dir.file("faulty.wasm", &faulty.component(fault_at)), dir.file("busy.wasm", &busy().component(compute_at)));
    let port = free_port();
    let server = Launch::new(["-i", "127.0.0.1", "-p", &port.to_string(), "--limit", "connections=300"])
        // The test's socket path is not used: it becomes the export name of `--run`.
        .socket_options(&["-f", "-e"], "-P")
        .args(["--wasm-filter".as_ref(), faulty.as_os_str()])
        .args(["--wasm-filter".as_ref(), busy.as_os_str()])
        .args(["--filter=cow", "file"])
        .path("dir", &exports)
        .start();
    (server, Target { port, export: "disk".into(), fault_at, compute_at })
}

/// A filter whose next background range takes long to find, on connections that have read at its
/// trigger.
fn busy() -> Guest {
    let text = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "prefetch" (func $prefetch (param i64 i64) (result i32)))
    (import "rbdkit:filter/slots@0.1.0" "add" (func $add (param i32 i32 i64) (result i64)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eq (local.get 0) (i64.const $TRIGGER)) (then
            (drop (call $add (i32.const 0) (i32.const 0) (i64.const 1)))
            (drop (call $prefetch (i64.const 0) (i64.const 4096)))))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/background@0.1.0#next-range") (result i32)
        (local $n i64)
        (i32.store8 (i32.const 2048) (i32.const 0))
        (if (i64.eqz (call $add (i32.const 0) (i32.const 0) (i64.const 0))) (then (return (i32.const 2048))))
        (loop $again
            (local.set $n (i64.add (local.get $n) (i64.const 1)))
            (br_if $again (i64.lt_u (local.get $n) (i64.const 300000000))))
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i64.store (i32.const 2056) (i64.const 0))
        (i64.store (i32.const 2064) (i64.const 4096))
        (i32.const 2048))
"#;
    Guest::new("busy", &["reads", "background"], text)
}

fn measure(client: &mut TcpStream, rng: &mut Rng, times: &mut Vec<Duration>) {
    for _ in 0..READS {
        // Not at the triggers of the filters, which are at the end.
        let offset = rng.below((SIZE - 8192) / 4096) * 4096;
        let began = Instant::now();
        attackers::read(client, offset, 4096).expect("the honest client is served");
        times.push(began.elapsed());
        // So that the reads see all of an attack and not only its first moment.
        std::thread::park_timeout(PACE);
    }
}

fn new_client(target: &Target) -> io::Result<Duration> {
    let began = Instant::now();
    attackers::read(&mut target.client(Ipv4Addr::LOCALHOST)?, 0, 4096)?;
    Ok(began.elapsed())
}

/// The attackers that RBDKIT_ATTACKERS names, separated by commas, or all.
fn chosen() -> Vec<&'static Attacker> {
    const ALL: &[Attacker] = &attackers::ALL;
    match std::env::var("RBDKIT_ATTACKERS") {
        Ok(names) => ALL.iter().filter(|attacker| names.split(',').any(|name| name == attacker.name)).collect(),
        Err(_) => ALL.iter().collect(),
    }
}

#[test]
fn attackers_make_others_wait_hardly_longer() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let dir = TempDir::new();
    let (server, target) = start(&dir);
    let mut client = target.client(Ipv4Addr::LOCALHOST).expect("a client");
    let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
    let mut slowest_entry = Duration::ZERO;
    measure(&mut client, &mut rng, &mut Vec::new());
    let files = server.open_files();
    for _ in 0..ROUNDS {
        // After an attack the server still closes connections.
        server.wait_until("the attackers' connections are closed", |server| server.open_files() <= files);
        measure(&mut client, &mut rng, &mut quiet);
        let calm = new_client(&target).expect("a new client");
        under_attack(&target, &chosen(), || {
            measure(&mut client, &mut rng, &mut attacked);
            let entry = new_client(&target).expect("a new client under attack");
            assert!(entry < Duration::from_secs(1) + 20 * calm, "a new client waited for {entry:?}");
            slowest_entry = slowest_entry.max(entry);
        });
    }
    let (calm, worst) = (percentile(&mut quiet, 99), percentile(&mut attacked, 99));
    println!("p99 {calm:?}, under attack {worst:?}; a new client within {slowest_entry:?}");
    assert!(worst <= 5 * calm.max(NOISE), "p99 {worst:?} under attack, {calm:?} otherwise");
    drop(client);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}", outcome.status);
}
