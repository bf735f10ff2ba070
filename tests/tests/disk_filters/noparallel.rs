//! noparallel: what runs at once below it.

use std::path::Path;

use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

/// A server over scripts that run at once. Each request leaves a line when it begins and another
/// one when it ends.
fn noting(dir: &TempDir, words: &[&str], pread: &str, pwrite: &str) -> Server {
    let log = dir.join("log");
    let noted = |operation: &str, does: &str| {
        let log = log.display();
        format!("{operation}=echo begin $4 >>{log}; {does}; echo end $4 >>{log}")
    };
    Launch::new(words.iter().filter(|word| word.starts_with("--")))
        .args(["eval", "get_size=echo 1M", "thread_model=echo parallel", "can_write=exit 0"])
        .arg(noted("pread", &format!("{pread}; dd if=/dev/zero bs=$3 count=1 status=none")))
        .arg(noted("pwrite", &format!("cat >/dev/null; {pwrite}")))
        .args(words.iter().filter(|word| !word.starts_with("--")))
        .start()
}

/// The most requests that were under way at once.
fn at_once(dir: &TempDir) -> usize {
    let log = std::fs::read_to_string(dir.join("log")).expect("the log");
    let (mut now, mut most) = (0, 0);
    for line in log.lines() {
        now = if line.starts_with("begin") { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}

/// A script that ends once `count` requests are under way. It fails if that does not happen within
/// ten seconds.
fn meet(dir: &Path, count: usize) -> String {
    format!(
        "touch {0}/here.$4; n=0; while [ $(ls {0} | grep -c here) -lt {count} ]; do \
         n=$((n + 1)); [ $n -lt 1000 ] || exit 1; sleep 0.01; done",
        dir.display()
    )
}

/// Four clients with four reads each.
const CROWD: &str = "
clients = []
for c in range(4):
    client = nbd.NBD()
    client.connect_uri(uri)
    clients.append((client, [client.aio_pread(nbd.Buffer(512), 512 * (4 * c + n)) for n in range(4)]))
for client, cookies in clients:
    for cookie in cookies:
        while not client.aio_command_completed(cookie):
            client.poll(-1)
";

#[test]
fn all_requests_run_one_at_a_time() {
    let dir = TempDir::new();
    let server = noting(&dir, &["--filter=noparallel", "serialize=all-requests"], "sleep 0.01", "true");
    nbdsh(&server.uri(), CROWD).ok();
    assert_eq!(at_once(&dir), 1);
}

#[test]
fn each_client_has_one_request_at_a_time_and_clients_run_at_once() {
    let dir = TempDir::new();
    let server = noting(&dir, &["--filter=noparallel"], "sleep 0.01", "true");
    nbdsh(
        &server.uri(),
        "h.connect_uri(uri)\ncookies = [h.aio_pread(nbd.Buffer(512), 512 * n) for n in range(8)]\n\
                          while h.aio_in_flight() > 0:\n    h.poll(-1)",
    )
    .ok();
    assert_eq!(at_once(&dir), 1);
    let dir = TempDir::new();
    let server = noting(&dir, &["--filter=noparallel"], &meet(dir.path(), 4), "true");
    nbdsh(&server.uri(), CROWD).ok();
    assert!((2..=4).contains(&at_once(&dir)));
}

#[test]
fn without_the_filter_the_requests_of_a_client_run_at_once() {
    let dir = TempDir::new();
    let server = noting(&dir, &[], &meet(dir.path(), 4), "true");
    nbdsh(
        &server.uri(),
        "h.connect_uri(uri)\ncookies = [h.aio_pread(nbd.Buffer(512), 512 * n) for n in range(8)]\n\
                          while h.aio_in_flight() > 0:\n    h.poll(-1)",
    )
    .ok();
    assert!(at_once(&dir) >= 4);
}

#[test]
fn a_write_whose_client_has_left_ends_before_the_next_request_begins() {
    if is_nbdkit() {
        return;
    }
    let dir = TempDir::new();
    let wait = format!("while ! [ -e {}/go ]; do sleep 0.01; done", dir.path().display());
    let server = noting(&dir, &["-v", "--filter=noparallel", "serialize=all-requests"], "true", &wait);
    let log = dir.join("log");
    let begun = |line: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.lines().any(|other| other == line));
    let mut first = server.client();
    first.submit(rbdkit_tests::raw::cmd::WRITE, 0, 512, 1, b"x").expect("a request");
    server.wait_until("the write has begun", |_| begun("begin 512"));
    drop(first);
    let mut second = server.client();
    second.submit(rbdkit_tests::raw::cmd::READ, 0, 1024, 1, b"").expect("a request");
    server.wait_until("the first client is gone", |server| server.stderr().contains("connection 1: closed"));
    std::fs::write(dir.join("go"), b"").expect("a file");
    second.receive().expect("an answer");
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), "begin 512\nend 512\nbegin 1024\nend 1024\n");
}

#[test]
fn a_write_whose_client_has_left_ends_before_the_next_client_begins() {
    if is_nbdkit() {
        return;
    }
    let dir = TempDir::new();
    let wait = format!("while ! [ -e {}/go ]; do sleep 0.01; done", dir.path().display());
    let server = noting(&dir, &["-v", "--filter=noparallel", "serialize=connections"], "true", &wait);
    let log = dir.join("log");
    let mut first = server.client();
    first.submit(rbdkit_tests::raw::cmd::WRITE, 0, 512, 1, b"x").expect("a request");
    server.wait_until("the write has begun", |_| std::fs::read(&log).is_ok_and(|text| text == b"begin 512\n"));
    drop(first);
    std::thread::scope(|scope| {
        scope.spawn(|| server.client().read(1024, 1).expect("a read"));
        server.wait_for_log("connection 2: ");
        std::fs::write(dir.join("go"), b"").expect("a file");
    });
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), "begin 512\nend 512\nbegin 1024\nend 1024\n");
}

#[test]
fn connections_come_one_after_another_and_are_told_so() {
    let server = Server::start(["--filter=noparallel", "memory", "1M", "serialize=connections"]);
    assert!(tool("nbdinfo", [server.uri()]).ok().contains("can_multi_conn: false"));
    let (mut first, order) = (server.client(), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut second = server.client();
            order.lock().expect("no panic").push("second");
            second.read(0, 1).expect("a read");
        });
        for _ in 0..200 {
            first.read(0, 512).expect("a read");
        }
        order.lock().expect("no panic").push("first");
        first.disconnect();
    });
    assert_eq!(*order.lock().expect("no panic"), ["first", "second"]);
    for word in ["serialize=requests", "serialize=all-requests", "serialize=all_requests"] {
        let server = Server::start(["--filter=noparallel", "memory", "1M", word]);
        assert!(tool("nbdinfo", [server.uri()]).ok().contains("can_multi_conn: true"), "{word}");
    }
}
