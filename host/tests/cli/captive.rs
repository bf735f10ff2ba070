//! `--run`.

use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{PROGRAM, Running, TempDir, run, wait_for_file};

fn ran(args: &[&str], command: &str) -> crate::support::Outcome {
    run(&TempDir::new(), &[args, &["--run", command]].concat())
}

#[test]
fn the_exit_status_is_the_commands() {
    for (command, status) in [("true", 0), ("exit 3", 3), ("no-such-command 2>/dev/null", 127), ("exit 255", 255)] {
        assert_eq!(ran(&["-U", "-", "null"], command).status, status, "{command}");
    }
}

#[test]
fn a_command_that_was_killed_is_reported_as_the_shell_does() {
    let outcome = ran(&["-U", "-", "null"], "kill -9 $$");
    assert_eq!(outcome.status, 137);
    assert_eq!(outcome.stderr, "rbdkit: external command was killed by signal 9 (Killed)\n");
}

#[test]
fn the_command_finds_the_variables() {
    let show = r#"echo "[$uri][$nbd][$unixsocket][$port][$exportname][${tls-unset}]"; env | grep -c ^uri="#;
    let outcome = ran(&["-U", "-", "null", "-e", "a b/é?"], show);
    let stdout = &outcome.stdout;
    let socket = stdout.split("[/tmp/").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    let uri = format!("nbd+unix:///a%20b/%C3%A9%3F?socket=/tmp/{socket}");
    assert_eq!(*stdout, format!("[{uri}][{uri}][/tmp/{socket}][][a b/é?][unset]\n0\n"));
    assert!(!std::path::Path::new("/tmp").join(socket).parent().unwrap().exists(), "the private directory is gone");

    let outcome = ran(&["-p", "0", "null"], r#"test "$uri" = "nbd://localhost:$port" && echo "$port""#);
    assert!(outcome.stdout.trim_end().parse::<u16>().unwrap() > 0, "{outcome:?}");
}

#[test]
fn clients_can_connect_when_the_command_runs() {
    for args in
        [&["-U", "-"][..], &["-p", "0"], &["-p", "0", "-i", "127.0.0.1"], &["-p", "0", "-4"], &["-U", "named socket"]]
    {
        let outcome = ran(&[args, &["memory", "12345"]].concat(), r#"nbdinfo --size "$uri""#);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "12345\n"), "{args:?}: {outcome:?}");
    }
}

#[test]
fn without_options_about_sockets_each_command_has_a_private_one() {
    let directory = TempDir::new();
    // The inner server runs while the outer one does.
    let inner = format!("'{PROGRAM}' memory 2k --run 'echo $port; nbdinfo --size \"$uri\"'; nbdinfo --size \"$uri\"");
    let outcome = run(&directory, &["memory", "1k", "--run", &inner]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "\n2048\n1024\n"), "{outcome:?}");
}

#[test]
fn a_socket_of_any_name_can_be_connected_to() {
    let directory = TempDir::new();
    for name in [
        &b"with space"[..],
        b"per%20cent",
        b"q?a=b&c=d#e",
        b"it's",
        b"\"quoted\"",
        b"back\\slash",
        b"$(touch ran)",
        b"new\nline",
        b"\xc3\xa9\xff",
        b"-x",
        b"a:b;c",
    ] {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut command = crate::support::rbdkit(&directory);
        command.arg("-U").arg(name).args([
            "memory",
            "12345",
            "--run",
            r#"nbdinfo --size "$uri" && test -S "$unixsocket""#,
        ]);
        let outcome = crate::support::outcome(&mut command);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "12345\n"), "{name:?}: {outcome:?}");
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    assert_eq!(directory.names(), [""; 0]);
}

#[test]
fn a_named_socket_and_the_pid_file_stay() {
    let directory = TempDir::new();
    let outcome = run(&directory, &["-U", "socket", "-P", "pid", "null", "--run", "test -s pid && test -S socket"]);
    assert_eq!(outcome.status, 0);
    assert_eq!(directory.names(), ["pid", "socket"]);
}

#[test]
fn a_signal_is_passed_on_to_the_command() {
    let directory = TempDir::new();
    let command = "trap 'exit 42' TERM; echo ready >ready; while :; do sleep 0.01; done";
    let server = Running::start(crate::support::rbdkit(&directory).args(["-U", "-", "null", "--run", command]));
    wait_for_file(&directory.join("ready"));
    server.signal(Signal::INT);
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(42));
}

#[test]
fn the_command_keeps_the_standard_streams() {
    let directory = TempDir::new();
    let mut server = Running::start(
        crate::support::rbdkit(&directory)
            .args(["-U", "-", "null", "--run", "cat; echo err >&2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    std::io::Write::write_all(&mut server.0.stdin.take().unwrap(), b"through").unwrap();
    let mut stdout = String::new();
    std::io::Read::read_to_string(&mut server.0.stdout.take().unwrap(), &mut stdout).unwrap();
    assert_eq!(stdout, "through");
    server.wait_for_line("err");
    assert!(server.status().success());
}
