//! What a fault costs, what the log says of it, and what happens to a filter that keeps failing.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::error;
use rbdkit_tests::{Client, Launch, Server, TempDir, wait};

use crate::guest::Guest;

/// A server with one filter, whose trigger is at offset 0.
fn serve(guest: &Guest, options: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "16M"]).start()
}

fn trap() -> Guest {
    Guest::reads("trap", "(func $inner (unreachable)) (func $outer (call $inner))", "(call $outer)")
}

#[test]
fn a_fault_is_logged_once_with_filter_operation_offset_cause_and_frames_and_then_counted() {
    let server = serve(&trap(), &[]);
    let mut client = server.client();
    for _ in 0..100 {
        assert_eq!(client.read(0, 512), Err(error::EIO));
        // A success in between, so that the failures are not consecutive.
        assert!(client.read(4096, 512).is_ok());
    }
    client.disconnect();
    let log = server.stop().stderr;
    let told: Vec<&str> = log.lines().filter(|line| line.starts_with("rbdkit: error: trap: ")).collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    let begin = "rbdkit: error: trap: pread at offset 0: wasm trap: wasm `unreachable` instruction executed; \
                 in inner+0x0 < outer+0x1 < function ";
    assert!(told[0].starts_with(begin), "{}", told[0]);
    assert!(
        told[1].contains("executed (10 times so far)") && told[2].contains("executed (100 times so far)"),
        "{told:#?}"
    );
}

#[test]
fn a_fresh_instance_takes_over_within_a_millisecond() {
    let server = serve(&trap(), &[]);
    let mut client = server.client();
    let mut best = Duration::MAX;
    for _ in 0..20 {
        assert_eq!(client.read(0, 512), Err(error::EIO));
        let began = Instant::now();
        assert!(client.read(4096, 512).is_ok());
        best = best.min(began.elapsed());
    }
    println!("the read after a trap: {best:?} at best of 20");
    assert!(best < Duration::from_millis(1), "{best:?}");
}

#[test]
fn a_filter_that_keeps_failing_is_paused_on_that_connection_and_serves_the_others() {
    let server = serve(&trap(), &[]);
    let (mut attacker, mut bystander) = (server.client(), server.client());
    for _ in 0..200 {
        assert_eq!(attacker.read(0, 512), Err(error::EIO));
    }
    server.wait_for_log("trap: it keeps failing: requests fail for 10ms without asking it");
    // Requests that would succeed fail too: they neither reach the filter nor pass around it.
    assert_eq!(attacker.read(4096, 512), Err(error::EIO));
    assert!(bystander.read(4096, 512).is_ok());
    // After a success the filter's failures are forgotten.
    wait::until("its requests reach the filter again", || attacker.read(4096, 512).is_ok());
    assert!((0..20).all(|_| attacker.read(4096, 512).is_ok()));
    let log = server.stop().stderr;
    // Most of the 200 requests never reached the filter, so they do not count as its faults.
    assert!(
        !log.contains("trap: pread at offset 0: wasm trap: wasm `unreachable` instruction executed (100 times"),
        "{log}"
    );
}

/// Sends this many reads of offset 0 at once. The results are theirs.
fn burst(client: &mut Client, reads: usize) -> Vec<Result<Vec<u8>, u32>> {
    for _ in 0..reads {
        client.submit(rbdkit_tests::raw::cmd::READ, 0, 0, 512, &[]).expect("a request");
    }
    (0..reads).map(|_| client.receive().expect("an answer").result).collect()
}

#[test]
fn requests_that_wait_behind_a_fault_do_not_each_take_their_own_time() {
    // There is one instance, and each of 128 reads would take its 20 ms.
    let spin = Guest::reads("spin", "", "(loop $l (br $l))").model(1);
    let server = serve(&spin, &["--filter-limit", "cpu=20ms"]);
    let mut client = server.client();
    assert!(burst(&mut client, 128).iter().all(|result| *result == Err(error::EIO)));
    // All requests in flight count as one failure, so the pause is not seconds long.
    wait::within(Duration::from_secs(3), "the client's requests succeed again", || client.read(4096, 512).is_ok());
    client.disconnect();
    let log = server.stop().stderr;
    assert!(log.contains("it computed for longer than 20ms"), "{log}");
    assert!(!log.contains("it computed for longer than 20ms (100 times"), "{log}");
}

#[test]
fn a_flood_of_failing_requests_makes_few_lines_in_the_log() {
    let server = serve(&trap(), &[]);
    let mut client = server.client();
    for _ in 0..40 {
        assert!(burst(&mut client, 100).iter().all(|result| *result == Err(error::EIO)));
    }
    // Failing again after each pause does not get more lines into the log.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let _ = (burst(&mut client, 16), client.read(4096, 512));
    }
    client.disconnect();
    let log = server.stop().stderr;
    let lines = log.lines().count();
    assert!((100..400).contains(&lines), "{lines} lines: {log}");
    assert!(log.contains(" more requests failed\n"), "{log}");
}

#[test]
fn with_disconnect_only_the_connection_that_met_the_fault_is_closed() {
    let server = serve(&trap(), &["--filter-on-fault=disconnect"]);
    let (mut attacker, mut bystander) = (server.client(), server.client());
    assert_eq!(attacker.read(0, 512), Err(error::EIO));
    assert!(is_refused(&mut attacker));
    // What the server still answers is refused, and then it closes the connection.
    let closed = (0..1_000_000).any(|_| {
        attacker.submit(rbdkit_tests::raw::cmd::READ, 0, 4096, 512, &[]).is_err() || attacker.receive().is_err()
    });
    assert!(closed);
    assert!(bystander.read(4096, 512).is_ok());
    assert!(server.client().read(4096, 512).is_ok());
}

/// Whether the next read fails with ESHUTDOWN or the server has closed already.
fn is_refused(client: &mut Client) -> bool {
    let Ok(_) = client.submit(rbdkit_tests::raw::cmd::READ, 0, 4096, 512, &[]) else { return true };
    client.receive().map_or(true, |reply| reply.result == Err(error::ESHUTDOWN))
}

#[test]
fn with_exit_the_server_ends_and_says_why() {
    let mut server = serve(&trap(), &["--filter-on-fault=exit"]);
    let mut client = server.client();
    assert_eq!(client.read(0, 512), Err(error::EIO));
    drop(client);
    wait::until("the server ends", || !server.is_alive());
    server.wait_for_log("rbdkit: error: a filter failed (--filter-on-fault=exit)");
}

#[test]
fn all_instances_of_all_filters_have_one_budget() {
    // Each instance may grow to 64 MiB; all of them together may have 20 MiB.
    let grow =
        Guest::reads("grow", "", "(if (i32.eq (memory.grow (i32.const 200)) (i32.const -1)) (then (unreachable)))")
            .model(2);
    let server = serve(&grow, &["--filter-limit", "memory-all=20M"]);
    let (mut one, mut two) = (server.client(), server.client());
    assert!(one.read(0, 512).is_ok());
    assert_eq!(two.read(0, 512), Err(error::EIO), "13 MB of 20 are taken");
    assert!(two.read(4096, 512).is_ok());
    one.disconnect();
    // An instance's memory is given back once the server has noticed that its client went.
    let two = RefCell::new(two);
    server.wait_until("the other client gets the memory of the first", |_| two.borrow_mut().read(0, 512).is_ok());
}

#[test]
fn a_limit_is_named_with_the_filter_that_it_was_given_to() {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &trap().component(0));
    let launch = || Launch::new(["--wasm-filter"]).arg(&file);
    for (limit, message) in [
        ("trap:memory=lots", "--filter-limit trap:memory=lots: is not a size"),
        ("trap:memory-all=1G", "--filter-limit trap:memory-all=1G: is one for all filters: leave their name out"),
        ("log-line=x", "--filter-limit log-line=x: is not a whole number from 1 on"),
    ] {
        let outcome =
            launch().args(["--filter-limit", limit, "memory", "1M"]).try_start().err().expect("it is refused");
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
        assert_eq!(outcome.status.code(), Some(1));
    }
}
