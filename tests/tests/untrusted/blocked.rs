//! A client that goes away in the middle of a call: whatever the component was at, its instance and its locks are there for the others.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Launch, Server, TempDir};

use crate::guest::Guest;

const SLEEP: &str = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
const LOCK: &str = r#"(import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))"#;

/// One instance only: who is served has got it.
fn serve(guest: &Guest, options: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "16M"]).start()
}

/// A client asks for the bad read and goes; another one is served then. How long that took.
fn leave(server: &Server) -> Duration {
    let mut client = server.client();
    let mut next = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    // In line behind it.
    next.submit(cmd::READ, 0, 4096, 512, &[]).expect("a request");
    drop(client);
    let began = Instant::now();
    assert!(next.receive().expect("a reply").result.is_ok());
    began.elapsed()
}

#[test]
fn a_sleep_without_end_ends_with_its_client() {
    let guest = Guest::reads("sleeper", SLEEP, "(call $sleep (i64.const -1) (i32.const 2100))");
    let server = serve(&guest, &["--filter-limit", "instances=1"]);
    let took = leave(&server);
    println!("served {took:?} after the other had gone");
    assert!(server.stop().status.success());
}

#[test]
fn a_guest_that_computes_on_for_a_client_that_has_gone_is_ended() {
    let guest = Guest::reads("spinner", "", "(loop $l (br $l))");
    let limits = ["--filter-limit", "instances=1", "--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"];
    let server = serve(&guest, &limits);
    let took = leave(&server);
    println!("served {took:?} after the other had gone");
    // Nobody is to blame.
    assert!(!server.stop().stderr.contains("spinner: pread"));
}

#[test]
fn a_sleep_that_is_asked_for_again_and_again_ends_with_its_client() {
    let guest =
        Guest::reads("insomniac", SLEEP, "(loop $l (call $sleep (i64.const 1000000000000) (i32.const 2100)) (br $l))");
    let server =
        serve(&guest, &["--filter-limit", "instances=1", "--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"]);
    leave(&server);
    assert!(server.stop().status.success());
}

#[test]
fn a_lock_ends_with_its_client_and_so_does_waiting_for_it() {
    // At 0: locks everything and sleeps. Elsewhere: locks everything and reads.
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    {SLEEP}
    {LOCK}
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 2) (i64.const 0) (i64.const 0x7fffffff) (i32.const 1) (i32.const 2100))
        (if (i32.load8_u (i32.const 2100)) (then (return (i32.const 2100))))
        (if (i64.eqz (local.get 0)) (then (call $sleep (i64.const -1) (i32.const 2100))))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#
    );
    let server = serve(&Guest::new("holder", &["reads"], &body), &[]);
    let (mut holder, mut waiter, mut next) = (server.client(), server.client(), server.client());
    holder.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    waiter.submit(cmd::READ, 0, 4096, 512, &[]).expect("a request");
    drop(waiter);
    next.submit(cmd::READ, 0, 8192, 512, &[]).expect("a request");
    drop(holder);
    assert!(next.receive().expect("a reply").result.is_ok());
    assert!(server.stop().status.success());
}

#[test]
fn the_server_stops_while_a_component_sleeps() {
    let guest = Guest::reads("sleeper", SLEEP, "(call $sleep (i64.const -1) (i32.const 2100))");
    let server = serve(&guest, &[]);
    let mut client = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    drop(client);
    assert!(server.stop().status.success());
}
