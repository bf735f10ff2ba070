//! Components that misuse events: alarms, watches, connections that come and go, and the powers to
//! end the server and to disconnect clients.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::{cmd, error};
use rbdkit_tests::{Launch, Server, TempDir};

use crate::guest::Guest;

const SHUTDOWN: &str = r#"(import "rbdkit:filter/server@0.1.0" "shutdown" (func $shutdown (param i32)))"#;
const DISCONNECT: &str = r#"(import "rbdkit:filter/client@0.1.0" "disconnect" (func $disconnect (param i32 i32)))"#;
const SET: &str = r#"(import "rbdkit:filter/alarms@0.1.0" "set" (func $set (param i32 i32 i64 i32)))"#;

/// Traps unless the result at 2100 is this errno, by its place in the contract.
fn expect(errno: u32) -> String {
    format!("(if (i32.ne (i32.load16_u (i32.const 2100)) (i32.const {})) (then (unreachable)))", 1 + (errno << 8))
}

/// Adds an event to a guest.
fn with(guest: Guest, interface: &'static str, function: &str) -> Guest {
    let mut exports = guest.exports.clone();
    exports.push(interface);
    Guest { exports, body: format!("{}\n{function}\n", guest.body), ..guest }
}

fn on_alarm(guest: Guest, code: &str) -> Guest {
    let text = format!(r#"(func (export "rbdkit:filter/on-alarm@0.1.0#alarm") (param i32 i32) {code})"#);
    with(guest, "on-alarm", &text)
}

fn on_connection(guest: Guest, opened: &str, closed: &str) -> Guest {
    let opened = format!(r#"(func (export "rbdkit:filter/on-connection@0.1.0#opened") (param i64) {opened})"#);
    let closed = format!(r#"(func (export "rbdkit:filter/on-connection@0.1.0#closed") (param i64) {closed})"#);
    with(guest, "on-connection", &format!("{opened}\n{closed}"))
}

fn launch(guest: &Guest, options: &[&str], params: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "1M"]).args(params).start()
}

fn serve(guest: &Guest, options: &[&str]) -> Server {
    launch(guest, options, &[])
}

fn count(log: &str, needle: &str) -> usize {
    log.lines().filter(|line| line.contains(needle)).count()
}

/// Reads from the trigger, and from elsewhere over another connection.
fn serves(server: &Server) {
    let mut client = server.client();
    assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
    client.disconnect();
}

/// A guest that asks for both powers in each read at the trigger and gets EPERM.
fn asks(name: &str) -> Guest {
    let code = format!(
        "(call $shutdown (i32.const 2100)) {eperm} (call $disconnect (i32.const 1) (i32.const 2100)) {eperm}",
        eperm = expect(0)
    );
    Guest::reads(name, &format!("{SHUTDOWN}\n{DISCONNECT}"), &code)
}

#[test]
fn without_the_operators_word_nobody_ends_the_server_or_disconnects_a_client() {
    // The name of a filter that is built in and may do so gives a stranger's file nothing.
    for name in ["stranger", "exitlast", "time-limit"] {
        let server = serve(&asks(name), &[]);
        let mut client = server.client();
        for _ in 0..20 {
            assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "{name}");
        }
        client.disconnect();
        serves(&server);
        let outcome = server.stop();
        assert!(outcome.status.success(), "{name}: {}", outcome.status);
        let log = outcome.stderr;
        let shutdown = format!("asked to end the server and may not (to allow it: --filter-allow {name}:shutdown)");
        let disconnect =
            format!("asked to disconnect a client and may not (to allow it: --filter-allow {name}:disconnect)");
        assert_eq!((count(&log, &shutdown), count(&log, &disconnect)), (1, 1), "{log}");
    }
}

#[test]
fn a_power_that_is_granted_is_granted_alone() {
    let code =
        format!("(call $disconnect (i32.const 1) (i32.const 2100)) {} (call $shutdown (i32.const 2100))", expect(0));
    let guest = Guest::reads("half", &format!("{SHUTDOWN}\n{DISCONNECT}"), &code);
    let server = serve(&guest, &["--filter-allow", "half:shutdown"]);
    let mut client = server.client();
    // The request that asked is still answered.
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    drop(client);
    let outcome = server.wait();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn a_wrong_grant_is_one_line() {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &asks("stranger").component(0));
    for (allow, line) in [
        ("stranger:reboot", "--filter-allow stranger:reboot: there is no such power, only shutdown and disconnect"),
        ("other:shutdown", "--filter-allow other:shutdown: there is no such filter, only stranger"),
        ("stranger#2:shutdown", "--filter-allow stranger#2:shutdown: there is no such filter, only stranger"),
        ("shutdown", "--filter-allow: 'shutdown' is not FILTER:POWER,POWER, for example exitlast:shutdown"),
    ] {
        let launch = Launch::new(["--wasm-filter"]).arg(&file).args(["--filter-allow", allow, "memory", "1M"]);
        let refused = launch.try_start().err().expect("it is refused");
        assert!(refused.stderr.contains(line), "{}", refused.stderr);
    }
}

#[test]
fn a_filter_that_disconnects_its_own_clients_in_a_loop_costs_only_them() {
    // From an alarm of the connection, which is always due again.
    let code = "(call $disconnect (i32.const 1) (i32.const 2100)) \
                (call $set (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 2100))";
    let start = "(call $set (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 2100))";
    let guest = on_alarm(Guest::reads("thrower", &format!("{DISCONNECT}\n{SET}"), start), code);
    let server = serve(&guest, &["--filter-allow", "thrower:disconnect"]);
    let mut other = server.client();
    for _ in 0..50 {
        let mut client = server.client();
        client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
        // The read that sets the alarm may be answered before the end.
        while client.receive().is_ok() {}
        assert_eq!(other.read(4096, 512), Ok(vec![0; 512]));
    }
    other.disconnect();
    assert!(server.stop().status.success());
}

#[test]
fn a_request_in_which_a_filter_ends_its_connection_gets_an_answer_or_none_as_the_filter_says() {
    for (ending, is_answered) in [(0, true), (1, false)] {
        let code = format!("(call $disconnect (i32.const {ending}) (i32.const 2100))");
        let server = serve(&Guest::reads("ends", DISCONNECT, &code), &["--filter-allow", "ends:disconnect"]);
        for _ in 0..20 {
            let mut client = server.client();
            client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
            let answer = client.receive().map(|reply| reply.result).ok();
            assert_eq!(answer, is_answered.then(|| Ok(vec![0; 512])));
            assert!(client.receive().is_err(), "the connection is closed");
        }
        assert!(server.stop().status.success());
    }
}

#[test]
fn events_that_never_return_are_ended_by_the_limits() {
    let guest = on_connection(Guest::reads("spins", "", ""), "(loop $l (br $l))", "(loop $l (br $l))");
    let server = serve(&guest, &["--filter-limit", "cpu=100ms"]);
    serves(&server);
    server.wait_for_log("spins: on-connection: it computed for longer than 100ms");
    serves(&server);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn the_server_ends_in_time_while_an_event_that_never_returns_runs() {
    let log = r#"(import "rbdkit:filter/log@0.1.0" "info" (func $info (param i32 i32)))"#;
    // Both with one instance, which the event holds, and with many.
    for model in [1, 3] {
        let opened = "(call $info (i32.const 1100) (i32.const 5)) (loop $l (br $l))";
        let guest = on_connection(Guest::reads("stuck", log, ""), opened, "").model(model);
        let limits = ["--filter-limit", "cpu=1h", "--filter-limit", "wall=1h", "--filter-limit", "setup=1h"];
        let server = serve(&guest, &limits);
        let client = server.client();
        server.wait_for_log("stuck: stuck");
        drop(client);
        let began = Instant::now();
        server.stop();
        // 5 s are the bound of every end; the rest is for a busy machine.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[test]
fn a_trap_in_an_event_costs_the_event() {
    let start = "(call $set (i32.const 2) (i32.const 3) (i64.const 0) (i32.const 2100)) \
                 (call $set (i32.const 0) (i32.const 3) (i64.const 0) (i32.const 2100))";
    let guest = on_alarm(Guest::reads("traps", SET, start), "(unreachable)");
    let guest = on_connection(guest, "(unreachable)", "(unreachable)");
    let watch = r#"(func (export "rbdkit:filter/on-watch@0.1.0#changed") (param i32 i32 i32 i32) (unreachable))"#;
    let guest = Guest { params: vec![("flag", "watch")], ..with(guest, "on-watch", watch) };
    let dir = TempDir::new();
    let flag = dir.join("flag");
    let server = launch(&guest, &[], &[&format!("flag={}", flag.display())]);
    let mut client = server.client();
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    std::fs::write(&flag, b"").expect("a file");
    for event in ["alarm", "changed", "on-connection"] {
        server.wait_for_log(&format!("traps: {event}: "));
    }
    assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
    client.disconnect();
    serves(&server);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn alarms_without_end_get_a_twentieth_of_a_processor() {
    // Each call computes for some milliseconds, and each alarm is due again at once: all alarms of
    // the server and of eight connections.
    let again = "(local $n i32) \
                 (loop $l (local.set $n (i32.add (local.get $n) (i32.const 1))) \
                     (br_if $l (i32.lt_u (local.get $n) (i32.const 3000000)))) \
                 (call $set (local.get 0) (local.get 1) (i64.const 0) (i32.const 2100))";
    let start: String = (0..16)
        .flat_map(|id| {
            [0, 2].map(|scope| {
                format!("(call $set (i32.const {scope}) (i32.const {id}) (i64.const 0) (i32.const 2100))\n")
            })
        })
        .collect();
    let guest = on_alarm(Guest::reads("floods", SET, &start), again);
    let server = serve(&guest, &[]);
    let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    for client in &mut clients {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    // What may run ahead is used up.
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(500) {
        assert_eq!(clients[0].read(4096, 512), Ok(vec![0; 512]));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (began, before) = (Instant::now(), server.cpu());
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(clients[0].read(4096, 512), Ok(vec![0; 512]));
        std::thread::park_timeout(Duration::from_millis(50));
    }
    if let (Some(before), Some(after)) = (before, server.cpu()) {
        // In nanoseconds. The rest is for the reads and for whole calls.
        let share = (after - before) as f64 / 1e9 / began.elapsed().as_secs_f64();
        assert!(share < 0.3, "{share} of a processor");
    }
    drop(clients);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn an_alarm_that_cannot_be_set_is_an_errno() {
    // einval for an id above 15 and for the scope `exportname`; enotsup without `on-alarm`.
    let einval = expect(4);
    let code = format!(
        "(call $set (i32.const 2) (i32.const 16) (i64.const 0) (i32.const 2100)) {einval} \
         (call $set (i32.const 1) (i32.const 0) (i64.const 0) (i32.const 2100)) {einval} \
         (call $cancel (i32.const 2) (i32.const -1) (i32.const 2100)) {einval} \
         (call $cancel (i32.const 1) (i32.const 0) (i32.const 2100)) {einval}"
    );
    let cancel = r#"(import "rbdkit:filter/alarms@0.1.0" "cancel" (func $cancel (param i32 i32 i32)))"#;
    let server = serve(&on_alarm(Guest::reads("wrong-ids", &format!("{SET}\n{cancel}"), &code), ""), &[]);
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    let code = format!("(call $set (i32.const 2) (i32.const 0) (i64.const 0) (i32.const 2100)) {}", expect(7));
    let server = serve(&Guest::reads("deaf", SET, &code), &[]);
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    // What belongs to a connection traps in an event, or is enxio.
    let handle = r#"(import "rbdkit:filter/request@0.1.0" "handle" (func $handle (result i64)))"#;
    let guest = on_connection(Guest::reads("no-request", handle, ""), "(drop (call $handle))", "");
    let server = serve(&guest, &[]);
    serves(&server);
    server.wait_for_log("no-request: on-connection: it called request.handle where");
    assert_eq!(server.client().read(1 << 20, 512), Err(error::EINVAL));
}
