//! Options that change what clients see.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Running, TempDir, greeting, leave, outcome, rbdkit, run, wait_for_file};

/// What nbdsh prints in captive mode.
pub fn nbdsh(options: &[&str], code: &str) -> String {
    let directory = TempDir::new();
    let command = format!("nbdsh -u \"$uri\" -c '{code}'");
    let outcome = outcome(rbdkit(&directory).args(["-U", "-"]).args(options).args(["memory", "1M", "--run", &command]));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{options:?}");
    outcome.stdout
}

#[test]
fn readonly_reaches_the_client() {
    assert_eq!(nbdsh(&[], "print(h.is_read_only())"), "False\n");
    for option in ["-r", "--readonly", "--read-only"] {
        assert_eq!(nbdsh(&[option], "print(h.is_read_only())"), "True\n");
    }
}

#[test]
fn structured_replies_can_be_withheld() {
    assert_eq!(nbdsh(&[], "print(h.get_structured_replies_negotiated())"), "True\n");
    for option in ["--no-sr", "--no-structured-replies"] {
        assert_eq!(nbdsh(&[option], "print(h.get_structured_replies_negotiated())"), "False\n");
    }
}

#[test]
fn multi_conn_can_be_withheld() {
    assert_eq!(nbdsh(&[], "print(h.can_multi_conn())"), "True\n");
    assert_eq!(nbdsh(&["--no-multi-conn"], "print(h.can_multi_conn())"), "False\n");
}

#[test]
fn options_that_change_nothing_are_taken() {
    for options in
        [&["-n"][..], &["--newstyle"], &["--tls=off"], &["-t", "1"], &["--threads=64"], &["-t", "0"], &["--timeout=5s"]]
    {
        assert_eq!(nbdsh(options, "print(h.get_size())"), "1048576\n", "{options:?}");
    }
    assert_eq!(nbdsh(&["-D", "nbdkit.backend.datapath=0", "-D", "nbdkit.backend.controlpath=0"], "h.pread(1,0)"), "");
}

#[test]
fn handshake_flags_can_be_masked() {
    let directory = TempDir::new();
    for (mask, flags) in [("0xffff", 3), ("1", 1), ("2", 2), ("0", 0)] {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let stdin = std::os::fd::OwnedFd::from(theirs.try_clone().unwrap());
        let mut command = rbdkit(&directory);
        command.args(["-s", "null", "--mask-handshake", mask]);
        let server =
            Running::start(command.stdin(Stdio::from(stdin)).stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs))));
        assert_eq!(greeting(&ours), flags, "{mask}");
        drop(ours);
        assert_eq!(server.status().code(), Some(0), "{mask}");
    }
}

#[test]
fn the_uri_can_be_printed() {
    let directory = TempDir::new();
    let outcome = run(&directory, &["-U", "socket", "-e", "x", "--print-uri", "null", "--run", "true"]);
    let uri = format!("nbd+unix:///x?socket={}", directory.join("socket").display());
    assert_eq!(outcome.stdout, format!("{uri}\nnbdinfo '{uri}'\nnbdsh -u '{uri}'\n"));
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let directory = TempDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let outcome = run(&directory, &["-i", "127.0.0.1", "-p", &port, "-P", "pid", "null"]);
    let message = format!(
        "rbdkit: error: cannot listen on 127.0.0.1:{port}: the address is in use already (-p takes another port)\n"
    );
    assert_eq!((outcome.status, outcome.stderr), (1, message));
    assert_eq!(directory.names(), [""; 0]);
}

#[test]
fn tcp_listens_on_both_families_unless_one_is_left_out() {
    let directory = TempDir::new();
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    for (option, ipv4, ipv6) in [("-f", true, has_ipv6), ("-4", true, false), ("-6", false, has_ipv6)] {
        if !ipv4 && !ipv6 {
            continue;
        }
        let pid = directory.join("pid");
        let mut command = rbdkit(&directory);
        let server = Running::start(
            command.args(["-f", option, "-p", "0", "--print-uri", "-P", "pid", "null"]).stdout(Stdio::piped()),
        );
        wait_for_file(&pid);
        let mut server = server;
        let mut uri = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(server.0.stdout.take().unwrap()), &mut uri).unwrap();
        let port: u16 = uri.trim_end().strip_prefix("nbd://localhost:").unwrap().parse().unwrap();
        for (address, expected) in [("127.0.0.1", ipv4), ("::1", ipv6)] {
            match std::net::TcpStream::connect((address, port)) {
                Ok(stream) => {
                    assert!(expected, "{option} {address}");
                    greeting(&stream);
                    leave(stream);
                }
                Err(error) => assert!(!expected, "{option} {address}: {error}"),
            }
        }
        server.signal(Signal::TERM);
        assert_eq!(server.status().code(), Some(0));
        std::fs::remove_file(pid).unwrap();
    }
}

#[test]
fn requests_are_shown_with_v_unless_the_debug_flag_says_no() {
    let shown = |options: &[&str]| {
        let directory = TempDir::new();
        let read = "nbdsh -u \"$uri\" -c 'h.pread(512, 1024)'";
        outcome(rbdkit(&directory).args(options).args(["-U", "-", "memory", "1M", "--run", read])).stderr
    };
    assert!(shown(&["-v"]).contains("rbdkit: debug: memory: pread offset=1024 length=512\n"));
    let less = shown(&["-v", "-D", "nbdkit.backend.datapath=0"]);
    assert!(!less.contains("pread") && less.contains("rbdkit: debug: "), "{less}");
    assert_eq!(shown(&[]), "");
    assert_eq!(shown(&["-D", "memory.no=1"]), "rbdkit: warning: -D memory.no: memory has no such debug flag\n");
    assert_eq!(shown(&["-D", "memory.no=1", "--log=null"]), "");
    assert_eq!(
        shown(&["-D", "curl.verbose=1"]),
        "rbdkit: warning: -D curl.verbose: neither the plugin nor a filter is called curl\n"
    );
    let unknown = shown(&["-D", "nbdkit.no=1"]);
    assert!(unknown.starts_with("rbdkit: warning: -D nbdkit.no: there is no such debug flag (there are nbdkit."));
}

#[test]
fn a_file_is_named_relative_to_where_the_program_was_called() {
    let directory = TempDir::new();
    std::fs::write(directory.join("disk.img"), vec![7; 4096]).unwrap();
    let started = run(&directory, &["-U", "socket", "-P", "pid", "file", "disk.img"]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let (_, server) = crate::support::Process::in_file(&directory.join("pid"));
    let uri = format!("nbd+unix://?socket={}", directory.join("socket").display());
    let read = Command::new("nbdsh")
        .env("PATH", crate::support::path())
        .args(["-u", &uri, "-c", "print(h.pread(4096, 0) == bytes([7]) * 4096)"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(read.stdout).unwrap(), "True\n");
    server.signal(Signal::TERM);
    server.wait();
}

#[test]
fn swap_locks_the_process_into_memory() {
    let directory = TempDir::new();
    let server = Running::start(rbdkit(&directory).args(["-f", "--swap", "-U", "socket", "-P", "pid", "null"]));
    wait_for_file(&directory.join("pid"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim().to_string();
    assert_ne!(locked, "0 kB");
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}
