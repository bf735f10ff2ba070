//! Socket activation, and one client on standard input and output.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{
    Outcome, PROGRAM, Running, TempDir, greeting, leave, outcome, rbdkit, run, says_hello, wait_for_file,
};

/// The program with a descriptor 3, as a service manager would pass it.
fn activated(directory: &TempDir, fd: impl Into<OwnedFd>, variables: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    let script = format!("exec 3<&0 </dev/null; {variables} exec {PROGRAM} \"$@\"");
    command.args(["-c", &script, "sh"]).current_dir(directory.path()).stdin(Stdio::from(fd.into()));
    command
}

const OURS: &str = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nbd";

#[test]
fn an_inherited_unix_socket_is_served_and_left_alone() {
    let directory = TempDir::new();
    let listener = UnixListener::bind(directory.join("socket")).unwrap();
    // The client connects before the server runs, and waits in the queue.
    let early = UnixStream::connect(directory.join("socket")).unwrap();
    let server = Running::start(activated(&directory, listener, OURS).args(["-P", "pid", "null"]));
    greeting(&early);
    leave(early);
    says_hello(&directory.join("socket"));
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
    assert_eq!(directory.names(), ["pid", "socket"]);
}

#[test]
fn an_inherited_tcp_socket_is_served() {
    let directory = TempDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Running::start(activated(&directory, listener, OURS).args(["null"]));
    let client = TcpStream::connect(address).unwrap();
    greeting(&client);
    leave(client);
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn an_inherited_vsock_socket_is_served() {
    use rustix::net::{AddressFamily, SocketType};
    // Without AF_VSOCK in the kernel nobody can pass on such a socket.
    let Ok(listener) = rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None) else { return };
    rustix::net::bind(&listener, &rbdkit_server::VsockAddress::any(u32::MAX)).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let directory = TempDir::new();
    let mut command = activated(&directory, listener, OURS);
    let mut server = Running::start(command.args(["-v", "-P", "pid", "null"]).stderr(Stdio::piped()));
    server.wait_for_line("listening at what the caller passed on");
    wait_for_file(&directory.join("pid"));
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn what_the_server_starts_does_not_take_the_sockets_for_its_own() {
    let directory = TempDir::new();
    let listener = UnixListener::bind(directory.join("socket")).unwrap();
    let scripts = ["get_size=env >environment; echo 1M", "pread=exit 1"];
    let server = Running::start(activated(&directory, listener, OURS).args(["-P", "pid", "eval"]).args(scripts));
    wait_for_file(&directory.join("pid"));
    crate::support::output_of(
        "nbdinfo",
        &["--size", &format!("nbd+unix://?socket={}", directory.join("socket").display())],
    );
    let environment = std::fs::read_to_string(directory.join("environment")).unwrap();
    assert!(!environment.contains("LISTEN_"), "{environment}");
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn variables_for_another_process_are_ignored() {
    let directory = TempDir::new();
    let outcome = outcome(rbdkit(&directory).env("LISTEN_PID", "1").env("LISTEN_FDS", "1").args([
        "-U",
        "-",
        "null",
        "--run",
        "echo $LISTEN_FDS",
    ]));
    assert_eq!(outcome, Outcome { status: 0, stdout: "1\n".into(), stderr: String::new() });
}

#[test]
fn what_cannot_be_served_is_refused() {
    let directory = TempDir::new();
    let refused = |variables: &str, args: &[&str]| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let outcome = outcome(activated(&directory, null, variables).args(args));
        assert_eq!(outcome.status, 1);
        outcome.stderr
    };
    assert_eq!(refused(OURS, &["null"]), "rbdkit: error: socket activation: descriptor 3: is not a socket\n");
    assert_eq!(
        refused("exec 3<&-; LISTEN_PID=$$ LISTEN_FDS=1", &["null"]),
        "rbdkit: error: socket activation: descriptor 3: Bad file descriptor\n"
    );
    assert_eq!(
        refused(OURS, &["-U", "socket", "null"]),
        "rbdkit: error: -U cannot be used with socket activation (LISTEN_FDS is set)\n"
    );
    assert_eq!(
        refused("LISTEN_PID=$$ LISTEN_FDS=x", &["null"]),
        "rbdkit: error: LISTEN_FDS: 'x' is not a whole number from 0 to 16\n"
    );
    let (connected, _peer) = UnixStream::pair().unwrap();
    let outcome = outcome(activated(&directory, connected, OURS).arg("null"));
    assert_eq!(outcome.stderr, "rbdkit: error: socket activation: descriptor 3: is not a listening socket\n");
    assert_eq!(directory.names(), [""; 0]);
}

fn single(directory: &TempDir, args: &[&str]) -> (Running, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stdin = OwnedFd::from(theirs.try_clone().unwrap());
    let mut command = rbdkit(directory);
    command.args(args).stdin(Stdio::from(stdin)).stdout(Stdio::from(OwnedFd::from(theirs)));
    (Running::start(&mut command), ours)
}

#[test]
fn one_client_is_served_on_the_standard_streams() {
    for option in ["-s", "--single", "--stdin"] {
        let directory = TempDir::new();
        let (server, client) = single(&directory, &[option, "null"]);
        greeting(&client);
        leave(client);
        assert_eq!(server.status().code(), Some(0), "{option}");
    }
}

#[test]
fn a_single_client_that_vanishes_ends_the_server() {
    let (server, client) = single(&TempDir::new(), &["-s", "null"]);
    greeting(&client);
    drop(client);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn a_signal_ends_a_single_client() {
    let (server, client) = single(&TempDir::new(), &["-s", "null"]);
    greeting(&client);
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn a_plugin_that_prints_does_not_disturb_a_single_client() {
    let directory = TempDir::new();
    let (server, client) =
        single(&directory, &["-s", "eval", "get_ready=echo noise", "get_size=echo 1M", "pread=exit 1"]);
    greeting(&client);
    leave(client);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn a_pid_file_is_written_for_a_single_client_too() {
    let directory = TempDir::new();
    let (server, client) = single(&directory, &["-s", "-P", "pid", "null"]);
    wait_for_file(&directory.join("pid"));
    leave(client);
    assert_eq!(server.status().code(), Some(0));
    let outcome = run(&directory, &["-s", "-U", "-", "null"]);
    assert_eq!(outcome.stderr, "rbdkit: error: -s and -U cannot be used together\n");
}
