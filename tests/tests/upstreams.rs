//! Upstream servers of the plugins nbd and ssh that are hostile or that hang.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::server::descendants;
use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool, wait};

/// Longer than a stop may take, and much shorter than what a plugin waits for its upstream.
const STOP: Duration = Duration::from_secs(25);

/// How far an NBD server goes before it says no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connected,
    Greeted,
    Open,
    /// It answers the first request with errors until the connection ends.
    EndlessErrors,
}

/// An NBD server for one client, on a thread that ends with the connection. It sends an event when
/// it says no more.
fn upstream(dir: &TempDir, stage: Stage) -> (PathBuf, Receiver<()>, JoinHandle<()>) {
    let (tell, silent) = channel();
    let socket = dir.join("upstream.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        // An error is the end of the connection.
        let _ = serve(&stream, stage);
        let _ = tell.send(());
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (socket, silent, thread)
}

fn serve(stream: &UnixStream, stage: Stage) -> std::io::Result<()> {
    let (mut reading, mut stream) = (stream, stream);
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        reading.read_exact(&mut bytes).map(|()| bytes)
    };
    if stage == Stage::Connected {
        return Ok(());
    }
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    take(4)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    loop {
        let header = take(16)?;
        let (option, length) = (number(&header[8..12]), number(&header[12..]));
        take(length)?;
        if stage == Stage::Greeted {
            return Ok(());
        }
        let mut reply = |kind: u32, data: &[u8]| {
            let head = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &header[8..12], &kind.to_be_bytes()].concat();
            stream.write_all(&[&head, &(data.len() as u32).to_be_bytes()[..], data].concat())
        };
        match option {
            // STRUCTURED_REPLY, GO, and all others.
            8 => reply(1, &[])?,
            7 => {
                reply(3, &[&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &1_u16.to_be_bytes()].concat())?;
                reply(1, &[])?;
                break;
            }
            _ => reply(1 << 31 | 1, &[])?,
        }
    }
    let request = take(28)?;
    let head = 0x668e_33ef_u32.to_be_bytes();
    let error = [&head[..], &[0, 0, 0x80, 1], &request[8..16], &[0, 0, 0, 6, 0, 0, 0, 5, 0, 0]].concat();
    if stage != Stage::EndlessErrors {
        return Ok(());
    }
    loop {
        stream.write_all(&error)?;
    }
}

#[test]
fn errors_without_end_cost_one_connection_and_not_the_server() {
    let dir = TempDir::new();
    let (socket, _, hostile) = upstream(&dir, Stage::EndlessErrors);
    let server = Launch::new(["nbd"]).path("socket", &socket).start();
    nbdsh(&server.uri(), "h.connect_uri(uri)\nassert fails(lambda: h.pread(512, 0)) == 'EIO'").ok();
    hostile.join().expect("the hostile server sees the end of the connection");
    let stderr = server.stop().stderr;
    assert_eq!(stderr.matches("does not come to an end").count(), 2, "the connection's end and the request: {stderr}");
}

/// Stops a server below whose plugin everything hangs.
fn stop_in_time(server: Server, what: &str) {
    let began = Instant::now();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{what}: {}", outcome.stderr);
    assert!(began.elapsed() < STOP, "{what}: {:?}", began.elapsed());
}

#[test]
fn an_nbd_server_that_hangs_does_not_hold_the_end() {
    for stage in [Stage::Connected, Stage::Greeted, Stage::Open] {
        let dir = TempDir::new();
        let (socket, silent, thread) = upstream(&dir, stage);
        let server = Launch::new(["nbd"]).path("socket", &socket).start();
        let uri = server.uri();
        let client = std::thread::spawn(move || tool("nbdsh", ["-u", &uri, "-c", "h.pread(512, 0)"]));
        silent.recv_timeout(wait::TIMEOUT).expect("the upstream is reached");
        stop_in_time(server, &format!("{stage:?}"));
        client.join().expect("the client");
        thread.join().expect("the upstream");
    }
}

/// A server whose `ssh` is this script.
fn with_ssh(dir: &TempDir, script: &str) -> Server {
    let file = dir.sparse_file("disk.img", 1 << 20);
    let launch = Launch::new(["ssh", "host=far"]).path("path", &file);
    launch.with_program(dir, "ssh", &format!("#!/bin/sh\n{script}\n")).start()
}

#[test]
fn a_login_over_ssh_that_hangs_does_not_hold_the_end() {
    let dir = TempDir::new();
    let began = dir.join("began");
    let server = with_ssh(&dir, &format!("trap '' TERM; touch {}; while :; do sleep 3600; done", began.display()));
    let uri = server.uri();
    let client = std::thread::spawn(move || tool("nbdinfo", [&uri]));
    server.wait_until("ssh runs", |_| began.exists());
    stop_in_time(server, "the login");
    client.join().expect("the client");
}

#[test]
fn an_sftp_server_that_hangs_does_not_hold_the_end_and_is_killed() {
    let dir = TempDir::new();
    let server = with_ssh(&dir, "exec /usr/lib/openssh/sftp-server");
    let mut client = server.client();
    assert!(client.read(0, 512).is_ok());
    let ssh = *descendants(server.pid()).last().expect("ssh");
    tool("kill", ["-STOP", &ssh.to_string()]).ok();
    client.submit(cmd::READ, 0, 0, 4096, &[]).expect("a request");
    stop_in_time(server, "a read");
    assert!(!Path::new(&format!("/proc/{ssh}")).exists(), "ssh was killed");
}

#[test]
fn endless_messages_of_ssh_do_not_fill_the_log() {
    let dir = TempDir::new();
    let chatter = "mkfifo \"$0.go\"
        (read -r go <\"$0.go\"; yes noise | head -n 200000 >&2; touch \"$0.done\") &
        exec /usr/lib/openssh/sftp-server";
    let server = with_ssh(&dir, chatter);
    let mut client = server.client();
    std::fs::write(dir.join("ssh.go"), "go\n").expect("the script's pipe");
    let done = dir.join("ssh.done");
    server.wait_until("everything was said", |_| done.exists());
    assert!(client.read(0, 512).is_ok());
    client.disconnect();
    let stderr = server.stop().stderr;
    let lines = stderr.matches("noise").count();
    assert!((1..200).contains(&lines), "{lines} lines");
}
