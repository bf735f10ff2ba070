//! The end of a server, and clients that leave in the handshake.

use std::time::Duration;

use super::Running;
use super::client::{READ, Reply, go};
use super::plugin::{WAITS, WAITS_FOR_CLIENT};
use crate::ServerLimits;

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);

/// Nothing but what a test does ends a wait of the server.
fn patient() -> ServerLimits {
    ServerLimits { stop_grace: HOUR, stop_timeout: HOUR, drain_timeout: HOUR, ..ServerLimits::default() }
}

fn reading(running: &Running, offset: u64) -> super::Client {
    let mut client = running.client(false);
    client.request(READ, 0, 1, offset, 8);
    running.until("the read waits", || running.disk.diary().contains(&"read waits".to_string()));
    client
}

#[test]
fn a_client_that_leaves_is_noticed_after_the_server_was_stopped() {
    let mut running = Running::limited(patient());
    let client = reading(&running, WAITS_FOR_CLIENT);
    running.stop.stop();
    drop(client);
    running.stopped();
    assert_eq!(running.disk.diary(), ["open ''", "read waits", "finalize", "close"]);
}

#[test]
fn clients_count_as_gone_some_time_after_the_server_was_stopped() {
    let mut running = Running::limited(ServerLimits { stop_grace: SHORT, ..patient() });
    let mut client = reading(&running, WAITS_FOR_CLIENT);
    running.stop.stop();
    assert_eq!(client.reply(), Reply::Simple { error: 108, cookie: 1 });
    running.stopped();
}

#[test]
fn an_operation_that_does_not_end_is_given_up() {
    let mut running = Running::limited(ServerLimits { stop_grace: SHORT, stop_timeout: 2 * SHORT, ..patient() });
    let _client = reading(&running, WAITS);
    running.stopped();
    assert_eq!(running.disk.diary(), ["open ''", "read waits"]);
}

#[test]
fn a_client_that_leaves_while_its_export_is_opened_gives_its_place_back() {
    let running = Running::limited(ServerLimits { connections: 1, ..ServerLimits::default() });
    let hangs = || running.disk.diary().contains(&"open hangs".to_string());
    let mut first = running.connect();
    first.greet(3);
    first.send_option(7, &go("hangs", &[]));
    running.until("the open hangs", hangs);
    drop(first);
    let mut second = running.client(false);
    second.request(READ, 0, 2, 0, 8);
    assert_eq!(second.reply(), Reply::Simple { error: 0, cookie: 2 });
    assert_eq!(running.disk.diary(), ["open hangs", "open ''"]);
    // The open goes on, and what it opened is closed.
    running.disk.gate.add_permits(1);
    running.until("it is closed", || running.disk.diary().last().is_some_and(|line| line == "close"));
    assert_eq!(running.disk.diary(), ["open hangs", "open ''", "finalize", "close"]);
}

#[test]
fn an_open_that_hangs_does_not_hold_up_the_end() {
    let mut running = Running::limited(ServerLimits { stop_grace: SHORT, stop_timeout: 2 * SHORT, ..patient() });
    let mut client = running.connect();
    client.greet(3);
    client.send_option(7, &go("hangs", &[]));
    running.until("the open hangs", || running.disk.diary().contains(&"open hangs".to_string()));
    running.stop.stop();
    assert!(client.rest().is_empty());
    running.stopped();
}
