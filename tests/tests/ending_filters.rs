//! The filters that end the server or a connection: exitlast, exitwhen and time-limit in the
//! program.

use std::fs::{File, OpenOptions};
use std::process::Command;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::{Stream, cmd};
use rbdkit_tests::server::{filter, program};
use rbdkit_tests::{Client, Launch, Server, TempDir, tool};

/// More clients than the filter has instances, at once.
const MANY: usize = 300;

fn connect(server: &Server, count: usize) -> Vec<Client> {
    (0..count).map(|_| server.client()).collect()
}

/// The server has ended by itself, without an error.
fn ends(server: Server) {
    let outcome = server.wait();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

/// The client's connection is closed, and no further reply comes.
fn is_closed(client: &mut Client) {
    assert!(client.receive().is_err(), "a reply");
}

#[test]
fn exitlast_ends_the_server_with_the_last_of_many_clients() {
    let mut server = Launch::new(["--filter=exitlast", "memory", "1M"]).start();
    let mut clients = connect(&server, MANY);
    let mut last = clients.pop().expect("a client");
    // Half of them leave properly, and half vanish.
    for (nth, client) in clients.into_iter().enumerate() {
        if nth % 2 == 0 { client.disconnect() } else { drop(client) }
    }
    assert_eq!(last.read(0, 512), Ok(vec![0; 512]));
    assert!(server.is_alive());
    drop(last);
    ends(server);
}

#[test]
fn exitlast_waits_for_the_first_client_and_counts_real_ones() {
    let mut server = Launch::new(["--filter=exitlast", "memory", "1M"]).start();
    assert!(server.is_alive());
    tool("nbdinfo", ["--size", &server.uri()]).ok();
    ends(server);
    // A signal ends the server whoever is connected.
    let server = Launch::new(["--filter=exitlast", "memory", "1M"]).start();
    let _clients = connect(&server, MANY);
    assert!(server.stop().status.success());
}

#[test]
fn a_copy_of_exitlast_in_a_file_needs_the_operators_word() {
    let copy = filter("exitlast");
    let server = Launch::new(["--wasm-filter"]).arg(&copy).args(["memory", "1M"]).start();
    drop(server.client());
    server.wait_for_log("exitlast: it asked to end the server and may not");
    assert!(server.stop().status.success());
    let allowed = ["--filter-allow", "exitlast:shutdown", "memory", "1M"];
    let server = Launch::new(["--wasm-filter"]).arg(&copy).args(allowed).start();
    drop(server.client());
    ends(server);
}

/// An event while many clients are connected: no new one gets in, and the server ends with the
/// last.
fn ends_after_the_clients(server: Server, event: impl FnOnce()) {
    let mut clients = connect(&server, MANY);
    event();
    server.wait_for_log("exitwhen: the event has happened");
    tool("nbdinfo", ["--size", &server.uri()]).fails();
    for client in &mut clients {
        assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
    }
    drop(clients);
    ends(server);
}

fn exitwhen(parameter: &str) -> Server {
    Launch::new(["--filter=exitwhen", "memory", "1M", parameter]).start()
}

#[test]
fn exitwhen_ends_when_a_file_is_created_or_deleted() {
    let dir = TempDir::new();
    let (stop, there) = (dir.join("stop"), dir.file("there", b""));
    ends_after_the_clients(exitwhen(&format!("exit-when-file-created={}", stop.display())), || {
        std::fs::write(&stop, b"").expect("a file");
    });
    // Without clients, and confined: within less than the poll of a minute.
    std::fs::remove_file(&stop).expect("removed");
    let server = exitwhen(&format!("exit-when-file-created={}", stop.display()));
    std::fs::write(dir.join("other"), b"").expect("another file");
    std::fs::rename(dir.join("other"), &stop).expect("renamed");
    ends(server);
    let server = exitwhen(&format!("exit-when-file-deleted={}", there.display()));
    std::fs::remove_file(&there).expect("removed");
    ends(server);
}

#[test]
fn exitwhen_finds_a_file_in_a_directory_that_was_made_later() {
    let dir = TempDir::new();
    let stop = dir.join("later/stop");
    let server = exitwhen(&format!("exit-when-file-created={}", stop.display()));
    std::fs::create_dir(dir.join("later")).expect("a directory");
    std::fs::write(&stop, b"").expect("a file");
    ends(server);
}

#[test]
fn exitwhen_ends_when_a_process_exits() {
    let mut process = Command::new("sleep").arg("1000").spawn().expect("a process");
    let server = exitwhen(&format!("exit-when-process-exits={}", process.id()));
    ends_after_the_clients(server, || {
        process.kill().expect("killed");
        process.wait().expect("ended");
    });
    let gone = format!("exit-when-process-exits={}", process.id());
    let refused = Launch::new(["--filter=exitwhen", "memory", "1M", &gone]).try_start().err().expect("refused");
    assert!(refused.stderr.contains(&format!("{gone}: cannot be watched: No such process")), "{}", refused.stderr);
}

#[test]
fn exitwhen_ends_when_a_pipe_is_closed() {
    let dir = TempDir::new();
    let pipe = dir.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    // Open in both directions, which waits for nobody.
    let writer: File = OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let script = format!("#!/bin/sh\nexec {} \"$@\" 7<{}\n", program().display(), pipe.display());
    let start = dir.program("start", &script);
    let launch = Launch::new(["--filter=exitwhen", "memory", "1M", "exit-when-pipe-closed=7"]);
    let server = launch.program(start).start();
    // Data in the pipe is no event.
    std::io::Write::write_all(&mut &writer, b"data").expect("written");
    ends_after_the_clients(server, || drop(writer));
    let file = dir.file("file", b"");
    let script = format!("#!/bin/sh\nexec {} \"$@\" 7<{}\n", program().display(), file.display());
    let launch = Launch::new(["--filter=exitwhen", "memory", "1M", "exit-when-pipe-closed=7"]);
    let refused = launch.program(dir.program("file-start", &script)).try_start().err().expect("refused");
    assert!(refused.stderr.contains("it is neither a pipe nor a socket"), "{}", refused.stderr);
    let launch = Launch::new(["--filter=exitwhen", "memory", "1M", "exit-when-pipe-closed=99"]);
    let refused = launch.try_start().err().expect("refused");
    assert!(refused.stderr.contains("exit-when-pipe-closed=99: cannot be watched: Bad file"), "{}", refused.stderr);
}

#[test]
fn exitwhen_ends_when_a_command_says_so() {
    let dir = TempDir::new();
    let stop = dir.join("stop");
    let script = format!("exit-when-script=test ! -e {} || exit 88", stop.display());
    // Long before the next look a client that comes makes the filter look.
    let server = exitwhen(&script);
    let mut clients = connect(&server, 20);
    std::fs::write(&stop, b"").expect("a file");
    tool("nbdinfo", ["--size", &server.uri()]).fails();
    server.wait_for_log("exitwhen: the event has happened");
    for client in &mut clients {
        assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
    }
    drop(clients);
    ends(server);
    // So does one that leaves.
    std::fs::remove_file(&stop).expect("removed");
    let server = exitwhen(&script);
    let client = server.client();
    std::fs::write(&stop, b"").expect("a file");
    drop(client);
    ends(server);
    // While nobody comes and goes it looks by and by.
    std::fs::remove_file(&stop).expect("removed");
    let server = Launch::new(["--filter=exitwhen", "memory", "1M", "exit-when-poll=1", &script]).start();
    std::fs::write(&stop, b"").expect("a file");
    ends(server);
}

#[test]
fn a_command_of_exitwhen_that_fails_or_never_ends_holds_nobody() {
    let server = exitwhen("exit-when-script=echo oops >&2; exit 3");
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    server.wait_for_log("exitwhen: exit-when-script: the command ended with status 3, which is neither 0 nor 88");
    server.wait_for_log("exitwhen: exit-when-script: oops");
    assert!(server.stop().status.success());
    // The start does not wait for it. A client does, and the end does not.
    let server = exitwhen("exit-when-script=exec sleep 600");
    let asking = Stream::connect(server.socket());
    drop(asking);
    let _asking = Stream::connect(server.socket());
    assert!(server.stop().status.success());
    // It may take as long as the operator says.
    let limit = ["--filter-limit", "exitwhen:script-time=100ms"];
    let server = Launch::new(["--filter=exitwhen", "memory", "1M", "exit-when-script=sleep 600"]).args(limit).start();
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    server.wait_for_log("exitwhen: exit-when-script: ");
    assert!(server.stop().status.success());
}

#[test]
fn time_limit_ends_many_idle_clients_and_one_whose_requests_hang_below() {
    let server = Launch::new(["--filter=time-limit", "eval", "time-limit=2", "get_size=echo 1M"])
        .arg("pread=sleep 1000")
        .start();
    let began = Instant::now();
    let mut clients = connect(&server, MANY);
    let mut hangs = server.client();
    hangs.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    clients.iter_mut().for_each(is_closed);
    // Not before the limit.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    is_closed(&mut hangs);
    // The limit is that of a connection: a new client is served.
    let mut next = server.client();
    is_closed(&mut next);
    drop((clients, hangs, next));
    server.stop();
}

#[test]
fn time_limit_lets_requests_under_way_end() {
    let server = Launch::new(["--filter=time-limit", "--filter=delay", "memory", "1M", "time-limit=1"])
        .arg("delay-read=1500ms")
        .start();
    let mut client = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    // The answer comes half a second after the limit, and then the end.
    assert_eq!(client.receive().map(|reply| reply.result).ok(), Some(Ok(vec![0; 512])));
    is_closed(&mut client);
    assert!(server.stop().status.success());
}

#[test]
fn a_server_with_many_limited_connections_ends_at_once() {
    let server = Launch::new(["--filter=time-limit", "memory", "1M"]).start();
    let _clients = connect(&server, MANY);
    assert!(server.stop().status.success());
}
