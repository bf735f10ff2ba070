//! Start, background, pid files and sockets, signals, and the end.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{PROGRAM, Process, Running, TempDir, outcome, rbdkit, run, says_hello, wait_for_file};

#[test]
fn a_background_server_is_ready_when_the_caller_continues() {
    let directory = TempDir::new();
    let outcome = run(&directory, &["-U", "socket", "-P", "pid", "memory", "1M"]);
    assert_eq!((outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "", ""));
    let (pid, server) = Process::in_file(&directory.join("pid"));
    says_hello(&directory.join("socket"));

    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd").to_str(), Some("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(stream).to_str(), Some("/dev/null"), "{stream}");
    }

    server.signal(Signal::TERM);
    server.wait();
    // As with nbdkit, the caller removes both.
    assert_eq!(directory.names(), ["pid", "socket"]);
}

#[test]
fn each_of_the_four_signals_ends_it_with_status_0() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let directory = TempDir::new();
        let server = Running::start(rbdkit(&directory).args(["-f", "-U", "socket", "-P", "pid", "null"]));
        wait_for_file(&directory.join("pid"));
        server.signal(signal);
        assert_eq!(server.status().code(), Some(0), "{signal:?}");
        assert_eq!(directory.names(), ["pid", "socket"], "{signal:?}");
    }
}

#[test]
fn a_client_that_does_nothing_does_not_hold_up_the_end() {
    let directory = TempDir::new();
    let server = Running::start(rbdkit(&directory).args(["-f", "-U", "socket", "-P", "pid", "null"]));
    wait_for_file(&directory.join("pid"));
    let idle = UnixStream::connect(directory.join("socket")).unwrap();
    crate::support::greeting(&idle);
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait_for_requests() {
    let directory = TempDir::new();
    let mut server = Running::start(
        rbdkit(&directory)
            .args([
                "-f",
                "-v",
                "-U",
                "socket",
                "-P",
                "pid",
                "eval",
                "get_size=echo 1M",
                "pread=touch asked; exec sleep 1000",
            ])
            .stderr(Stdio::piped()),
    );
    wait_for_file(&directory.join("pid"));
    let mut client = Running::start(
        Command::new("nbdsh")
            .env("PATH", crate::support::path())
            .args(["-c", "h.connect_unix('socket')", "-c", "h.pread(512, 0)"])
            .current_dir(directory.path())
            .stderr(Stdio::null()),
    );
    wait_for_file(&directory.join("asked"));
    server.signal(Signal::TERM);
    server.wait_for_line("stopping");
    server.signal(Signal::TERM);
    server.wait_for_line("a second signal");
    assert_eq!(server.status().code(), Some(143));
    client.0.kill().unwrap();
}

#[test]
fn the_pid_file_is_complete_when_it_appears_and_overwrites_an_old_one() {
    let directory = TempDir::new();
    std::fs::write(directory.join("pid"), "1234567890123456789\n").unwrap();
    let outcome = run(&directory, &["-U", "socket", "-P", "pid", "null"]);
    assert_eq!(outcome.status, 0);
    let (_, server) = Process::in_file(&directory.join("pid"));
    server.signal(Signal::TERM);
    server.wait();
}

#[test]
fn it_exits_with_its_parent() {
    let directory = TempDir::new();
    let script = format!("{PROGRAM} --exit-with-parent -U socket -P pid null & read line");
    let mut parent = Running::start(
        Command::new("/bin/sh").args(["-c", &script]).current_dir(directory.path()).stdin(Stdio::piped()),
    );
    wait_for_file(&directory.join("pid"));
    let (_, server) = Process::in_file(&directory.join("pid"));
    drop(parent.0.stdin.take());
    assert!(!parent.status().success(), "read finds the end");
    server.wait();
}

#[test]
fn it_exits_with_its_parent_as_another_user_too() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let directory = TempDir::new();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = format!("{PROGRAM} --exit-with-parent -u nobody -U socket -P pid null & read line");
    let mut parent = Running::start(
        Command::new("/bin/sh").args(["-c", &script]).current_dir(directory.path()).stdin(Stdio::piped()),
    );
    wait_for_file(&directory.join("pid"));
    let (_, server) = Process::in_file(&directory.join("pid"));
    drop(parent.0.stdin.take());
    parent.status();
    server.wait();
}

#[test]
fn a_caller_that_was_killed_meanwhile_gets_no_server() {
    let directory = TempDir::new();
    let slow = "get_ready=mkfifo fifo; echo $PPID >starting; cat fifo";
    let caller =
        Running::start(rbdkit(&directory).args(["-U", "socket", "-P", "pid", "eval", slow, "get_size=echo 1"]));
    wait_for_file(&directory.join("starting"));
    // The script's parent is the child that starts the server.
    let mut text = std::fs::read_to_string(directory.join("starting")).unwrap();
    while !text.ends_with('\n') {
        text = std::fs::read_to_string(directory.join("starting")).unwrap();
    }
    let server = Process::of(text.trim_end().parse().unwrap());
    caller.signal(Signal::KILL);
    caller.status();
    std::fs::write(directory.join("fifo"), "go on").unwrap();
    server.wait();
    assert_eq!(directory.names(), ["fifo", "starting"]);
}

#[test]
fn debugging_messages_stay_on_standard_error_in_the_background() {
    let directory = TempDir::new();
    let mut caller =
        Running::start(rbdkit(&directory).args(["-v", "-U", "socket", "-P", "pid", "null"]).stderr(Stdio::piped()));
    caller.wait_for_line("rbdkit: debug: null: config_complete");
    wait_for_file(&directory.join("pid"));
    let (_, server) = Process::in_file(&directory.join("pid"));
    server.signal(Signal::TERM);
    caller.wait_for_line("rbdkit: debug: the server has ended");
    assert!(caller.status().success());
    server.wait();
}

#[test]
fn another_user_and_group_are_taken_on_after_listening() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let directory = TempDir::new();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let outcome =
        outcome(rbdkit(&directory).args(["-u", "nobody", "-g", "65534", "-U", "socket", "-P", "pid", "null"]));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let (pid, server) = Process::in_file(&directory.join("pid"));
    // Every thread, not only the first.
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534"] {
            assert!(status.lines().any(|found| found == line), "{line} in {status}");
        }
    }
    says_hello(&directory.join("socket"));
    server.signal(Signal::TERM);
    server.wait();
}

#[test]
fn a_private_socket_of_another_user_is_removed_as_well() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let directory = TempDir::new();
    // The command still runs as the caller.
    let outcome = run(&directory, &["-u", "nobody", "-U", "-", "null", "--run", "id -u; dirname $unixsocket"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let (uid, socket) = outcome.stdout.trim_end().split_once('\n').unwrap();
    assert_eq!(uid, "0");
    assert!(!std::path::Path::new(socket).exists());
}

/// A pid file that nobody reads: the start waits there, after the socket exists.
fn hanging_start(directory: &TempDir) -> Running {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let server = Running::start(rbdkit(directory).args(["-f", "-U", "socket", "-P", "fifo", "null"]));
    wait_for_file(&directory.join("socket"));
    server
}

#[test]
fn a_start_that_hangs_ends_with_a_signal_and_removes_its_socket() {
    let directory = TempDir::new();
    let server = hanging_start(&directory);
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(1));
    assert_eq!(directory.names(), ["fifo"]);
}

#[test]
fn a_start_that_hangs_ends_at_once_with_a_second_signal_and_removes_its_socket() {
    let directory = TempDir::new();
    let server = hanging_start(&directory);
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    let status = server.status().code();
    assert!(status == Some(130) || status == Some(143), "{status:?}");
    assert_eq!(directory.names(), ["fifo"]);
}

#[test]
fn a_script_that_hangs_before_the_socket_exists_ends_with_a_signal() {
    let directory = TempDir::new();
    let server = Running::start(
        rbdkit(&directory)
            .args([
                "-f",
                "-v",
                "-U",
                "socket",
                "-P",
                "pid",
                "eval",
                "get_size=echo 1M",
                "after_fork=touch asked; sleep 1000",
            ])
            .stderr(Stdio::piped()),
    );
    wait_for_file(&directory.join("asked"));
    // Nothing exists yet that would have to be removed, so the signal ends the process.
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), None);
    assert_eq!(directory.names(), ["asked"]);
}

#[test]
fn a_second_signal_removes_the_private_socket_and_kills_scripts() {
    let directory = TempDir::new();
    // The file appears complete.
    let read = format!("pread=cd '{}'; echo $$ >new; mv new asked; exec sleep 1000", directory.path().display());
    let command = "dirname $unixsocket >where; nbdsh -u $uri -c 'h.pread(512, 0)' 2>/dev/null";
    let server = Running::start(
        rbdkit(&directory)
            .env("PATH", crate::support::path())
            .args(["-U", "-", "eval", "get_size=echo 1M", &read, "--run", command])
            .current_dir(directory.path()),
    );
    wait_for_file(&directory.join("asked"));
    let script = std::fs::read_to_string(directory.join("asked")).unwrap();
    let socket = std::fs::read_to_string(directory.join("where")).unwrap();
    server.signal(Signal::TERM);
    server.signal(Signal::HUP);
    assert!(!server.status().success());
    assert!(!std::path::Path::new(socket.trim_end()).exists());
    if let Some(script) = Process::find(script.trim_end().parse().expect("the script's id")) {
        script.wait();
    }
}
