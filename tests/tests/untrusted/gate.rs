//! Guests that hold the requests before their layer, or misuse their control socket. And clients of
//! a control socket that do so.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::server::Server;
use rbdkit_tests::wait;
use rbdkit_tests::{Control, Launch, TempDir};

use crate::guest::Guest;

/// What the first byte of a command asks for: c closes the gate and answers the result, o opens it,
/// s spins, b answers 4097 bytes, m answers all of the memory and more, t traps, n answers nothing.
/// The answer to every other command is the command. A read at the trigger closes the gate; its
/// buffer begins with the result.
const OBEYS: &str = r#"
    (import "rbdkit:filter/gate@0.1.0" "close" (func $close (param i32)))
    (import "rbdkit:filter/gate@0.1.0" "open" (func $open))
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (func $answer (param i32 i32)
        (i32.store (i32.const 2200) (local.get 0)) (i32.store (i32.const 2204) (local.get 1)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i64.eq (local.get 0) (i64.const $TRIGGER)) (then
            (call $close (i32.const 2048))
            (call $write (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 2))
            (return (i32.const 1200))))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/on-control@0.1.0#received") (param i32 i32 i32 i32 i32) (result i32)
        (local $c i32)
        (local.set $c (i32.load8_u (local.get 3)))
        (call $answer (local.get 3) (local.get 4))
        (if (i32.eq (local.get $c) (i32.const 99)) (then
            (call $close (i32.const 2048)) (call $answer (i32.const 2048) (i32.const 2))))
        (if (i32.eq (local.get $c) (i32.const 111)) (then (call $open)))
        (if (i32.eq (local.get $c) (i32.const 115)) (then (loop $l (br $l))))
        (if (i32.eq (local.get $c) (i32.const 98)) (then (call $answer (i32.const 0) (i32.const 4097))))
        (if (i32.eq (local.get $c) (i32.const 109)) (then (call $answer (i32.const 1) (i32.const 0x7fffffff))))
        (if (i32.eq (local.get $c) (i32.const 116)) (then unreachable))
        (if (i32.eq (local.get $c) (i32.const 110)) (then (call $answer (i32.const 0) (i32.const 0))))
        (i32.const 2200))"#;

/// The trigger of [`OBEYS`].
const TRIGGER: u64 = 0;

/// The errnos of the contract that are expected here, by their numbers, as results.
const OK: &str = "\0";
const ETIMEDOUT: &str = "\u{1}\u{a}";
const EDEADLK: [u8; 2] = [1, 11];

/// The errno of a client whose request ended because the server stops.
const ESHUTDOWN: u32 = 108;

fn obeys(dir: &TempDir, plugin: &[&str]) -> Launch {
    let guest = Guest { params: vec![("control", "control")], ..Guest::new("obeys", &["reads", "on-control"], OBEYS) };
    let file = dir.file("obeys.wasm", &guest.component(TRIGGER));
    let limits = ["--filter-limit", "cpu=100ms", "--filter-limit", "wall=2s"];
    Launch::new(limits).arg("--wasm-filter").arg(file).args(plugin).path("control", &dir.join("control"))
}

fn control(dir: &TempDir) -> Control {
    Control::connect(&dir.join("control"))
}

fn stops_at_once(server: Server) -> String {
    let began = Instant::now();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    outcome.stderr
}

#[test]
fn a_gate_that_is_never_opened_keeps_neither_clients_nor_the_server_from_ending() {
    // From get-ready on.
    let body = r#"
    (import "rbdkit:filter/gate@0.1.0" "close" (func $close (param i32)))
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32)
        (call $close (i32.const 2048)) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))"#;
    let dir = TempDir::new();
    let file = dir.file("shut.wasm", &Guest::new("shut", &["lifecycle"], body).component(0));
    let server = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).start();
    let open = server.open_files();
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..10).map(|_| server.client()).collect();
        for client in &mut clients {
            for (kind, length) in [(cmd::READ, 4096), (cmd::FLUSH, 0), (cmd::TRIM, 4096), (cmd::BLOCK_STATUS, 4096)] {
                client.submit(kind, 0, 0, length, &[]).expect("a request");
            }
            client.submit(cmd::WRITE, 0, 0, 4096, &[1; 4096]).expect("a request");
        }
    }
    server.wait_until("the end of all connections", |server| server.open_files() <= open);
    let mut waits = server.client();
    waits.submit(cmd::READ, 0, 0, 4096, &[]).expect("a request");
    let told = std::thread::spawn(move || waits.receive().map(|reply| reply.result));
    let log = stops_at_once(server);
    // Unless the server stops before it has read the request.
    let line = "rbdkit: error: connection 201: READ offset=0 length=4096: ESHUTDOWN\n";
    assert!(log.is_empty() || log == line, "{log}");
    // The server may also close the connection before it has answered.
    if let Ok(result) = told.join().expect("a thread") {
        assert_eq!(result, Err(ESHUTDOWN));
    }
}

#[test]
fn a_request_cannot_close_the_gate_that_it_has_passed() {
    let dir = TempDir::new();
    let server = obeys(&dir, &["pattern", "1M"]).start();
    let mut client = server.client();
    assert_eq!(client.read(TRIGGER, 2).expect("a read"), EDEADLK);
    // The gate is still open.
    assert_eq!(client.read(4096, 8).expect("a read"), 4096_u64.to_be_bytes());
}

#[test]
fn requests_that_do_not_end_do_not_hold_the_call_that_waits_for_them() {
    let dir = TempDir::new();
    let plugin = ["eval", "get_size=echo 1048576", "pread=exec sleep 600"];
    let server = obeys(&dir, &plugin).args(["--filter-limit", "obeys:setup=2s"]).start();
    let (mut hangs, mut control) = (server.client(), control(&dir));
    hangs.submit(cmd::READ, 0, 4096, 4096, &[]).expect("a request");
    server.wait_until("the plugin's script", |server| {
        rbdkit_tests::server::descendants(server.pid())
            .iter()
            .any(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.starts_with(b"sleep")))
    });
    assert_eq!(control.say(b"c", 2), ETIMEDOUT);
    // The gate is closed, and may be opened.
    assert_eq!(control.say(b"o", 1), "o");
    // The server ends while a call waits.
    control.send(b"c").expect("a command");
    drop(hangs);
    stops_at_once(server);
}

#[test]
fn each_wrong_answer_costs_its_own_client() {
    let dir = TempDir::new();
    let server = obeys(&dir, &["memory", "1M"]).start();
    let mut stays = control(&dir);
    for (command, log) in [
        (b'b', "obeys: received: an answer of 4097 bytes (at most 4096): its client is disconnected"),
        (b'm', "obeys: received: "),
        (b't', "obeys: received: "),
        (b's', "obeys: received: "),
    ] {
        let mut wrong = control(&dir);
        wrong.send(&[command]).expect("a command");
        assert!(wrong.is_closed(), "{}", char::from(command));
        server.wait_for_log(log);
        assert_eq!(stays.say(b"hello", 5), "hello");
        assert_eq!(server.client().read(8192, 16), Ok(vec![0; 16]));
    }
    // No answer, and then one.
    // So long that the host does not read the next command with it.
    stays.send(&[b'n'; 4096]).expect("a command");
    assert_eq!(stays.say(b"x", 1), "x");
    assert_eq!(stays.say(&[b'y'; 4096], 4096), "y".repeat(4096));
    stops_at_once(server);
}

#[test]
fn clients_that_flood_or_never_read_are_bounded_and_disconnected() {
    let dir = TempDir::new();
    let server = obeys(&dir, &["memory", "1M"]).start();
    let path = dir.join("control");
    // They send a command and leave.
    for _ in 0..500 {
        let mut leaves = control(&dir);
        // More clients than may be connected are closed at once.
        let _ = leaves.send(b"e");
    }
    // Until those are gone, a client may be one too many.
    let admitted = || {
        let deadline = wait::Deadline::new();
        loop {
            let mut client = Control::connect(&path);
            if client.send(b"ready").is_ok() && client.receive(5).is_ok_and(|answer| answer == b"ready") {
                return client;
            }
            deadline.check("a place for a client");
        }
    };
    let mut asks = admitted();
    let before = server.resident();
    // They never read, and send as fast as they are read from.
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..15 {
            scope.spawn(|| {
                let mut floods = admitted();
                let mut sent = 0;
                while floods.send(&[b'e'; 4096]).is_ok() {
                    sent += 4096;
                    assert!(sent < 64 << 20, "the server reads without an end");
                }
            });
        }
    });
    assert!(began.elapsed() < wait::TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(asks.say(b"hello", 5), "hello");
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} more bytes of memory");
    drop(asks);
    stops_at_once(server);
    assert!(!path.exists());
}

#[test]
fn the_seventeenth_client_of_a_socket_is_disconnected() {
    let dir = TempDir::new();
    let server = obeys(&dir, &["memory", "1M"]).start();
    let mut clients: Vec<Control> = (0..16).map(|_| control(&dir)).collect();
    for client in &mut clients {
        assert_eq!(client.say(b"x", 1), "x");
    }
    assert!(control(&dir).is_closed());
    server.wait_for_log("obeys: control: a client is disconnected: 16 are connected, and no more are allowed");
    drop(clients.pop());
    server.wait_until("a place", |_| {
        let mut again = control(&dir);
        again.send(b"x").is_ok() && again.receive(1).is_ok()
    });
    drop(clients);
    stops_at_once(server);
}

#[test]
fn a_socket_that_nobody_would_serve_is_refused() {
    let dir = TempDir::new();
    let body = r#"(func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup"))"#;
    let guest = Guest { params: vec![("control", "control")], ..Guest::new("deaf", &["lifecycle"], body) };
    let file = dir.file("deaf.wasm", &guest.component(0));
    let outcome = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).try_start().err().expect("refused");
    let why = "its parameter \"control\" has the kind control, and it does not export on-control: nobody would serve \
               the socket";
    assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
}

#[test]
fn closing_in_a_command_waits_for_the_requests_under_way_alone() {
    let dir = TempDir::new();
    let server = obeys(&dir, &["memory", "1M"]).start();
    let (mut control, mut client) = (control(&dir), server.client());
    for round in 0..50 {
        assert_eq!(control.say(b"c", 2).chars().next(), OK.chars().next());
        client.submit(cmd::READ, 0, 4096, 16, &[]).expect("a request");
        assert_eq!(control.say(b"o", 1), "o", "{round}");
        assert_eq!(client.receive().expect("a reply").result, Ok(vec![0; 16]));
    }
}
