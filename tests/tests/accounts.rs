//! Every byte that the server allocates by the wish of a client or a guest is on an account with a
//! ceiling. One server is driven to each ceiling by fifty clients. Its memory stays below the sum.

use std::collections::HashMap;
use std::io::Write;

use rbdkit_tests::raw::{Stream, cmd, opt, request};
use rbdkit_tests::{Client, Launch, Server, TempDir};

#[path = "untrusted/guest.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod guest;

use guest::Guest;

/// Clients at a time.
const CLIENTS: usize = 50;

const MIB: u64 = 1 << 20;

/// A disk with more blocks than `maps` has room for.
const DISK: &str = "1T";

/// Reads here make the spender allocate buffers until it gets no more, and those there memory.
const BUFFERS_AT: u64 = 512;
const MEMORY_AT: u64 = 1024;

/// An account of memory: its limit's option and name, and its ceiling in bytes.
const ACCOUNTS: [(&str, &str, u64); 6] = [
    ("--limit", "requests-total", 128 * MIB),
    ("--limit", "receive", 2 * MIB),
    ("--limit", "handshakes", MIB),
    ("--filter-limit", "memory-all", 64 * MIB),
    ("--filter-limit", "spender:buffers-total", 32 * MIB),
    ("--filter-limit", "cow:maps", MIB / 4),
];

/// What the server keeps for the next requests (`Pool`): 16 MiB in each of six sizes.
const IDLE_BUFFERS: u64 = 96 * MIB;

/// What a connection takes besides.
const CONNECTION: u64 = 64 << 10;

fn spender() -> Guest {
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eq (local.get 0) (i64.const {BUFFERS_AT})) (then
            (loop $again
                (call $alloc (i32.const 1048576) (i32.const 2048))
                (br_if $again (i32.eqz (i32.load8_u (i32.const 2048)))))))
        (if (i64.eq (local.get 0) (i64.const {MEMORY_AT})) (then
            (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#
    );
    Guest::new("spender", &["reads"], &body)
}

fn start(dir: &TempDir) -> Server {
    let file = dir.file("spender.wasm", &spender().component(0));
    let mut launch = Launch::new(["-v", "--limit"]).arg(format!("connections={CLIENTS}"));
    for (option, name, ceiling) in ACCOUNTS {
        launch = launch.args([option, &format!("{name}={ceiling}")]);
    }
    // One call and one instance may take all that the filter may.
    for limit in ["spender:buffers=32M", "memory=64M", "cpu=60s", "wall=60s"] {
        launch = launch.args(["--filter-limit", limit]);
    }
    launch
        .args(["--wasm-filter".as_ref(), file.as_os_str()])
        .args(["--filter=cow", "memory", DISK, "cow-block-size=4k"])
        .start()
}

/// Clients whose requests fill the budget, and whose further requests wait in receive buffers.
fn fill_requests(server: &Server) -> Vec<Stream> {
    let mut crowd = Vec::new();
    for _ in 0..CLIENTS - 10 {
        let mut stream = Client::negotiate(server.socket(), "", false).into_stream();
        let mut messages = Vec::new();
        for cookie in 0..64 {
            messages.extend_from_slice(&request(0, cmd::READ, cookie, 1 << 30, 1 << 20));
        }
        stream.0.write_all(&messages).expect("requests");
        crowd.push(stream);
    }
    crowd
}

/// Clients that send long options and do not end them.
fn fill_handshakes(server: &Server) -> Vec<Stream> {
    let mut crowd = Vec::new();
    for _ in 0..9 {
        let mut stream = Stream::connect(server.socket());
        stream.greet(3).expect("a greeting");
        stream.option_header(opt::GO, 64 << 10).expect("an option");
        // The server closes the connection for which it has no room.
        let _ = stream.send(&vec![0; 60 << 10]);
        crowd.push(stream);
    }
    crowd
}

/// The peak of each account, from the log's last lines.
fn peaks(log: &str) -> HashMap<String, (u64, u64)> {
    let mut peaks = HashMap::new();
    for line in log.lines().filter_map(|line| line.split_once("account ")) {
        let (name, rest) = line.1.split_once(": at most ").expect("an account's line");
        let numbers: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
        peaks.insert(name.to_string(), (numbers[0], numbers.get(1).copied().unwrap_or(u64::MAX)));
    }
    peaks
}

#[test]
fn every_account_holds_its_ceiling_and_the_memory_is_no_more_than_their_sum() {
    let dir = TempDir::new();
    let server = start(&dir);
    let own = server.resident();
    let mut client = server.client();
    client.read(0, 512).expect("a read");

    // The filters' accounts.
    assert_eq!(client.read(MEMORY_AT, 512).map(|bytes| bytes.len()), Ok(512));
    assert_eq!(client.read(BUFFERS_AT, 512).map(|bytes| bytes.len()), Ok(512));
    let refused = (0..100_000u64).find(|number| client.write(number << 26, &[1; 512]).is_err());
    assert!(refused.is_some(), "the maps never end");
    client.disconnect();

    // The server's.
    let handshakes = fill_handshakes(&server);
    server.wait_for_log("too many clients send long options");
    drop(handshakes);
    let crowd = fill_requests(&server);
    let others: Vec<Client> = (0..10).map(|_| server.client()).collect();
    server.wait_for_log("waits for what other connections hold");
    let mut last = others;
    for client in &mut last {
        assert_eq!(client.read(0, 4096).map(|bytes| bytes.len()), Ok(4096));
    }
    let most = own + ACCOUNTS.iter().map(|(_, _, ceiling)| ceiling).sum::<u64>() + IDLE_BUFFERS;
    let most = most + CLIENTS as u64 * CONNECTION;
    assert!(most <= 512 * MIB, "{most}");
    let resident = server.proc_status("VmHWM:") << 10;
    assert!(resident <= most + most / 5, "{} MiB, of at most {}", resident / MIB, most / MIB);
    drop((crowd, last));

    let outcome = server.stop();
    let peaks = peaks(&outcome.stderr);
    for (_, name, ceiling) in ACCOUNTS.into_iter().chain([("", "connections", CLIENTS as u64)]) {
        let (peak, limit) = peaks[name];
        assert_eq!(limit, ceiling, "{name}");
        assert!(peak <= limit && peak >= limit / 10 * 9, "{name}: {peak} of {limit}");
    }
    println!("{} MiB resident, of at most {}; {peaks:?}", resident / MIB, most / MIB);
}
