//! A client goes away in the middle of a call. Whatever the component was doing, other clients get
//! its instance and its locks.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Launch, Server, TempDir};

use crate::guest::Guest;

const SLEEP: &str = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
const LOCK: &str = r#"(import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))"#;

/// A server with a single instance, which the client that is being served holds.
fn serve(guest: &Guest, options: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "16M"]).start()
}

/// A client sends the request at the trigger and goes away; another one is served then. The result
/// is how long that took.
fn leave(server: &Server) -> Duration {
    let mut client = server.client();
    let mut next = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    // This request waits behind the first one.
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
    // The log blames nobody.
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
    // A read at 0 locks everything and sleeps. Any other read locks everything and reads.
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

/// A server whose plugin does not answer a read or a write at 0 until the test allows it.
struct Hanging {
    server: Server,
    dir: TempDir,
}

impl Hanging {
    /// As [`serve`], but the plugin is a script that writes down its requests.
    fn serve(guest: &Guest, options: &[&str]) -> Hanging {
        let dir = TempDir::new();
        let file = dir.file("filter.wasm", &guest.component(u64::MAX));
        dir.file("hang", b"");
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a fifo");
        let at = dir.path().display();
        let wait = format!("echo $4 >>{at}/log; test $4 -eq 0 && test -e {at}/hang && read line <{at}/fifo");
        let launch = Launch::new(["--wasm-filter"]).arg(file).args(options);
        let launch = launch.args(["eval", "thread_model=echo parallel", "get_size=echo 16M", "can_write=exit 0"]);
        let launch = launch.arg(format!("pread={wait}; head -c $3 /dev/zero"));
        let server = launch.arg(format!("pwrite=cat >/dev/null; {wait}; exit 0")).start();
        Hanging { server, dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// How many requests at this offset the plugin was asked for.
    fn asked(&self, offset: u64) -> usize {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().filter(|line| *line == offset.to_string()).count()
    }

    /// A client whose read has reached the plugin. If the client leaves, the read is dropped and
    /// its script killed.
    fn waiting(&self) -> Client {
        self.waiting_for(cmd::READ, &[])
    }

    /// A client whose write has reached the plugin, which completes it even if the client leaves.
    fn writing(&self) -> Client {
        self.waiting_for(cmd::WRITE, &[1; 512])
    }

    fn waiting_for(&self, kind: u16, payload: &[u8]) -> Client {
        let before = self.asked(0);
        let mut client = self.server.client();
        client.submit(kind, 0, 0, 512, payload).expect("a request");
        self.server.wait_until("the plugin is asked", |_| self.asked(0) > before);
        client
    }

    /// From now on the plugin answers requests at once.
    fn recover(&self) {
        std::fs::remove_file(self.dir.join("hang")).expect("the file");
    }

    /// The same, and lets it answer the request that waits.
    fn answer(&self) {
        self.recover();
        // This waits until the script has opened the fifo for reading.
        std::fs::write(self.dir.join("fifo"), "go\n").expect("the fifo");
    }
}

const ONE: [&str; 2] = ["--filter-limit", "instances=1"];

#[test]
fn a_plugin_that_never_answers_holds_no_instance_of_a_client_that_has_gone() {
    let hanging = Hanging::serve(&Guest::reads("reader", "", ""), &ONE);
    let server = &hanging.server;
    let mut next = server.client();
    assert!(next.read(4096, 512).is_ok());
    let (files, threads) = (server.open_files(), server.proc_status("Threads:"));
    let client = hanging.waiting();
    next.submit(cmd::READ, 0, 8192, 512, &[]).expect("a request");
    let began = Instant::now();
    drop(client);
    assert!(next.receive().expect("a reply").result.is_ok());
    println!("served {:?} after the other had gone", began.elapsed());
    hanging.recover();
    server.wait_until("everything is given back", |server| {
        server.open_files() <= files && server.proc_status("Threads:") <= threads
    });
    let outcome = hanging.server.stop();
    assert!(outcome.status.success());
    assert!(!outcome.stderr.contains("error"), "an error is logged: {}", outcome.stderr);
}

#[test]
fn a_range_stays_locked_until_the_operation_below_has_ended() {
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    {LOCK}
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $lock (i32.const 2) (local.get 0) (i64.const 512) (i32.const 1) (i32.const 2100))
        (if (i32.load8_u (i32.const 2100)) (then (return (i32.const 2100))))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#
    );
    let hanging = Hanging::serve(&Guest::new("holder", &["reads", "writes"], &body), &[]);
    drop(hanging.writing());
    let mut next = hanging.server.client();
    next.submit(cmd::WRITE, 0, 0, 512, &[2; 512]).expect("a request");
    // Both writes were sent at once. Only the range at 0 is locked.
    let elsewhere = next.submit(cmd::WRITE, 0, 4096, 512, &[2; 512]).expect("a request");
    assert_eq!(next.receive().expect("a reply").cookie, elsewhere);
    assert_eq!(hanging.asked(0), 1);
    hanging.answer();
    assert!(next.receive().expect("a reply").result.is_ok());
    assert_eq!(hanging.asked(0), 2);
    assert!(hanging.server.stop().status.success());
}

#[test]
fn a_client_that_is_not_read_because_it_has_sent_too_much_is_noticed_when_it_goes() {
    let options = [&ONE[..], &["-t", "4"]].concat();
    let hanging = Hanging::serve(&Guest::reads("reader", "", ""), &options);
    let mut client = hanging.waiting();
    for _ in 0..8 {
        client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    }
    let mut next = hanging.server.client();
    next.submit(cmd::READ, 0, 4096, 512, &[]).expect("a request");
    drop(client);
    assert!(next.receive().expect("a reply").result.is_ok());
    hanging.recover();
    assert!(hanging.server.stop().status.success());
}

#[test]
fn a_client_that_says_goodbye_and_closes_does_not_stay_for_ever() {
    let hanging = Hanging::serve(&Guest::reads("reader", "", ""), &ONE);
    hanging.waiting().into_stream().request(0, cmd::DISC, 0, 0, 0).expect("a good-bye");
    let mut next = hanging.server.client();
    assert!(next.read(4096, 512).is_ok());
    hanging.recover();
    assert!(hanging.server.stop().status.success());
}

#[test]
fn the_server_stops_though_a_plugin_never_answers() {
    let guest = Guest::reads("reader", "", "");
    let hanging = Hanging::serve(&guest, &ONE);
    drop(hanging.waiting());
    let mut next = hanging.server.client();
    assert!(next.read(4096, 512).is_ok());
    drop(next);
    let began = Instant::now();
    assert!(hanging.server.stop().status.success());
    println!("stopped in {:?}", began.elapsed());
}
