//! Components that use what the connections of a filter have in common, a next that they share and
//! flushes of all, without measure.

use std::time::Instant;

use rbdkit_tests::raw::{Stream, error, go, opt, rep};
use rbdkit_tests::{Client, Launch, Server, TempDir};

use crate::guest::Guest;

/// A guest whose open runs `code` and then opens a shared next. Its name is at 3000 and has
/// `length` bytes; `code` may change both.
fn shares(name: &str, code: &str) -> Guest {
    let body = format!(
        r#"
    (import "rbdkit:filter/next-open@0.1.0" "open-shared" (func $open (param i32 i32 i32 i32)))
    (import "rbdkit:filter/request@0.1.0" "connection" (func $connection (result i64)))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (local $n i64) (local $at i32) (local $length i32)
        (local.set $at (local.get 1)) (local.set $length (local.get 2))
        {code}
        (call $open (local.get 0) (local.get $at) (local.get $length) (i32.const 2048))
        (i32.store8 (i32.const 2064) (i32.load8_u (i32.const 2048)))
        (i32.store8 (i32.const 2072) (i32.load8_u (i32.const 2049)))
        (i32.const 2064))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
"#
    );
    Guest::new(name, &["connection"], &body)
}

/// The guest over a plugin of scripts that notes each open and close in DIR/log.
fn over_noting(dir: &TempDir, guest: &Guest, more: &[&str]) -> Server {
    let (file, log) = (dir.file("filter.wasm", &guest.component(0)), dir.join("log"));
    Launch::new(["--wasm-filter"])
        .arg(file)
        .args(["eval", "get_size=echo 1048576", "pread=head -c $3 /dev/zero", "thread_model=echo parallel"])
        .arg(format!("open=echo open >>{}", log.display()))
        .arg(format!("close=echo close >>{}", log.display()))
        .args(more)
        .start()
}

/// How many disks were opened and closed below.
fn noted(dir: &TempDir) -> (usize, usize) {
    let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let count = |what: &str| log.lines().filter(|line| *line == what).count();
    (count("open"), count("close"))
}

/// The type of the last reply to GO for an export.
fn go_reply(server: &Server, name: &str) -> u32 {
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::GO, &go(name, &[])).expect("GO");
    stream.option_replies(opt::GO).expect("replies").0
}

#[test]
fn names_that_a_filter_invents_keep_one_disk_open() {
    // The name is the number of the connection, in letters.
    let code = "(local.set $n (call $connection)) (local.set $at (i32.const 3000)) \
                (local.set $length (i32.const 4)) \
                (i32.store (i32.const 3000) (i32.add (i32.const 0x61616161) (i32.or (i32.or \
                    (i32.wrap_i64 (i64.and (local.get $n) (i64.const 15))) \
                    (i32.shl (i32.wrap_i64 (i64.and (local.get $n) (i64.const 0xf0))) (i32.const 4))) \
                    (i32.shl (i32.wrap_i64 (i64.and (local.get $n) (i64.const 0xf00))) (i32.const 8)))))";
    let dir = TempDir::new();
    let server = over_noting(&dir, &shares("invents", code), &[]);
    for _ in 0..40 {
        let mut client = server.client();
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
        client.disconnect();
    }
    // All names are one disk for this plugin: what was opened for a new name is closed again.
    server.wait_until("the last close", |_| noted(&dir) == (40, 39));
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
    assert_eq!(noted(&dir), (40, 40));
}

#[test]
fn more_shared_disks_than_are_allowed_are_refused_while_all_are_used() {
    let dir = TempDir::new();
    let names: Vec<String> = (0..9).map(|n| format!("disk{n}")).collect();
    let list = format!("list_exports=echo NAMES; for n in {}; do echo $n; done", names.join(" "));
    let server = over_noting(&dir, &shares("shares", ""), &[&list, "--filter-limit", "shares:exports=3"]);
    // One disk is open besides those that the limit allows.
    let open = |name: &String| Client::negotiate(server.socket(), name, true);
    let mut clients: Vec<Client> = names[..4].iter().map(open).collect();
    for name in &names[4..] {
        assert_eq!(go_reply(&server, name), rep::ERR_UNKNOWN, "{name}");
    }
    // A disk that is open already has room for any number of clients.
    clients.extend((0..20).map(|_| open(&names[0])));
    for client in &mut clients {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    clients.drain(3..4).for_each(Client::disconnect);
    server.wait_until("the place of the client that left", |server| go_reply(server, &names[8]) == rep::ACK);
    assert_eq!(clients[0].read(4096, 512), Ok(vec![0; 512]));
    drop(clients);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
    let (opened, closed) = noted(&dir);
    assert_eq!(opened, closed);
}

#[test]
fn a_flush_of_all_flushes_a_shared_next_once() {
    // Scope 2 is the server. What flush-all answers is at 2048, as what flush answers.
    let flush = r#"
    (import "rbdkit:filter/next@0.1.0" "flush-all" (func $flush_all (param i32 i32)))"#;
    let export = r#"
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (call $flush_all (i32.const 2) (i32.const 2048)) (i32.const 2048))"#;
    let shares = shares("flusher", "");
    let guest =
        Guest { exports: vec!["connection", "flushes"], body: format!("{flush}{}{export}", shares.body), ..shares };
    let dir = TempDir::new();
    let flushed = dir.join("flushed");
    let note = format!("flush=echo flush >>{}", flushed.display());
    let server = over_noting(&dir, &guest, &["can_write=exit 0", "pwrite=cat >/dev/null", "can_flush=exit 0", &note]);
    let mut clients: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for client in &mut clients {
        client.write(0, &[1; 512]).expect("a write");
    }
    clients[3].flush().expect("a flush");
    assert_eq!(std::fs::read_to_string(&flushed).expect("a flush below"), "flush\n");
    clients.into_iter().for_each(Client::disconnect);
    assert!(server.stop().status.success());
}

#[test]
fn a_loop_of_flushes_of_a_hundred_connections_costs_its_own_request() {
    // Scope 2 is the server.
    let body = r#"
    (import "rbdkit:filter/next@0.1.0" "flush-all" (func $flush_all (param i32 i32)))
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32)
        (loop $l (call $flush_all (i32.const 2) (i32.const 2048)) (br $l))
        (unreachable))"#;
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &Guest::new("flusher", &["flushes"], body).component(0));
    let limits = ["--filter-limit", "cpu=50ms"];
    let server = Launch::new(["--wasm-filter"]).arg(file).args(limits).args(["memory", "1M"]).start();
    let mut clients: Vec<Client> = (0..100).map(|_| server.client()).collect();
    for (nth, client) in clients.iter_mut().enumerate() {
        client.write(nth as u64 * 512, &[nth as u8 + 1; 512]).expect("a write");
    }
    let mut looping = server.client();
    let began = Instant::now();
    looping.submit(rbdkit_tests::raw::cmd::FLUSH, 0, 0, 0, &[]).expect("a flush");
    for (nth, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read(nth as u64 * 512, 512), Ok(vec![nth as u8 + 1; 512]), "{:?}", began.elapsed());
    }
    assert_eq!(looping.receive().expect("a reply").result, Err(error::EIO));
    server.wait_for_log("flusher: flush: it computed for longer than 50ms");
    // Neither the others nor the end wait for a flush that loops.
    looping.submit(rbdkit_tests::raw::cmd::FLUSH, 0, 0, 0, &[]).expect("a flush");
    for mut client in clients {
        assert!(client.write(0, &[9; 512]).is_ok());
        client.disconnect();
    }
    assert_eq!(server.client().read(0, 512), Ok(vec![9; 512]));
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}
