//! Options about the protocol, the sockets, the messages and the parameters.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::serving::nbdsh;
use crate::support::{PROGRAM, Running, TempDir, greeting, outcome, output_of, path, rbdkit, run, wait_for_file};

#[test]
fn metadata_contexts_can_be_withheld() {
    let directory = TempDir::new();
    let contexts = |option: &str| {
        run(&directory, &[option, "memory", "1M", "--run", "nbdinfo \"$uri\" | grep -c base:allocation"]).stdout
    };
    assert_eq!(contexts("-n"), "1\n");
    for option in ["--no-mc", "--no-meta-contexts"] {
        assert_eq!(contexts(option), "0\n", "{option}");
        // Structured replies and multi-conn stay.
        assert_eq!(nbdsh(&[option], "print(h.can_multi_conn(), h.can_df())"), "True True\n");
    }
}

#[test]
fn an_oldstyle_client_gets_the_default_export() {
    for option in ["-o", "--oldstyle", "--old-style"] {
        let code = "h.pwrite(bytes(range(256)) * 2, 512); print(h.get_protocol(), h.get_size(), list(h.pread(2, 513)))";
        assert_eq!(nbdsh(&[option], code), "oldstyle 1048576 [1, 2]\n", "{option}");
    }
    // An error of the plugin can only end the connection, and the log says why.
    let directory = TempDir::new();
    let script = ["eval", "get_size=echo ENOENT nothing here >&2; exit 1", "--run", "nbdinfo \"$uri\" 2>/dev/null"];
    let outcome = run(&directory, &[&["-o"], &script[..]].concat());
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("error: connection 1: open: ") && outcome.stderr.contains("nothing here"));
}

#[test]
fn an_oldstyle_client_that_says_nothing_delays_nobody() {
    let directory = TempDir::new();
    let mut command = rbdkit(&directory);
    let server = Running::start(command.args(["-o", "-f", "-U", "socket", "-P", "pid", "memory", "1M"]));
    wait_for_file(&directory.join("pid"));
    let silent = UnixStream::connect(directory.join("socket")).unwrap();
    let uri = format!("nbd+unix://?socket={}", directory.join("socket").display());
    assert_eq!(output_of("nbdinfo", &["--size", &uri]), "1048576\n");
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
    drop(silent);
}

/// The timer that the kernel keeps for the server's side of a TCP connection.
fn timer(server: &SocketAddr, client: &SocketAddr) -> String {
    let column = |address: &SocketAddr| format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connection = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found =
        connection.filter(|words| words[1].ends_with(&column(server)) && words[2].ends_with(&column(client)));
    found.next().unwrap_or_else(|| panic!("no connection in {table}"))[5].split(':').next().unwrap().to_string()
}

#[test]
fn the_kernel_checks_idle_clients_if_asked_to() {
    for (options, expected) in [(&[][..], "00"), (&["--keepalive"], "02")] {
        let directory = TempDir::new();
        let mut command = rbdkit(&directory);
        command.args(["-f", "-p", "0", "-i", "127.0.0.1", "--print-uri", "null"]).args(options);
        let mut server = Running::start(command.stdout(Stdio::piped()));
        let uri = server.wait_for_output("the URI");
        let port = uri.trim_end().rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        greeting(&client);
        assert_eq!(timer(&client.peer_addr().unwrap(), &client.local_addr().unwrap()), expected, "{options:?}");
    }
}

#[test]
fn errors_go_into_a_file_or_a_descriptor_and_after_what_is_there() {
    let directory = TempDir::new();
    let log = directory.join("log");
    std::fs::write(&log, "before\n").unwrap();
    let script = ["eval", "get_size=echo 1M", "pread=echo EIO boom >&2; exit 1"];
    let read = ["--run", "nbdsh -u \"$uri\" -c 'h.pread(1, 0)' 2>/dev/null || true"];
    let to_file = run(&directory, &[&[&format!("--log={}", log.display())[..]], &script[..], &read[..]].concat());
    assert_eq!(to_file.stderr, "");
    let words = [&["--log=fd:5"], &script[..], &read[..]].concat();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec \"$@\" 5>>log", "sh", PROGRAM]).args(words);
    let to_descriptor = outcome(command.current_dir(directory.path()).env("PATH", path()));
    assert_eq!(to_descriptor.stderr, "");
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "before", "{text}");
    for line in &lines[1..] {
        assert!(
            line.starts_with("rbdkit: error: connection 1: READ offset=0 length=1: ") && line.ends_with("boom (EIO)")
        );
    }
    // A start that fails is told to the caller as well.
    let failed = run(&directory, &[format!("--log={}", log.display()), "-f".into(), "memory".into()]);
    assert!(failed.stderr.starts_with("rbdkit: error: "), "{failed:?}");
    assert!(std::fs::read_to_string(&log).unwrap().ends_with(&failed.stderr));
}

#[test]
fn messages_have_the_name_and_nbdkits_form_if_it_is_called_so() {
    let directory = TempDir::new();
    let link = directory.join("nbdkit");
    std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
    let read = "nbdsh -u \"$uri\" -c 'h.pread(512, 1024)'";
    let said = |program: &Path, options: &[&str]| {
        let mut command = Command::new(program);
        command.args(options).args(["memory", "1M", "--run", read]).env("PATH", path());
        outcome(&mut command).stderr
    };
    let text = said(&link, &["-v"]);
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("nbdkit: debug: nbdkit 1.46.0 (rbdkit {version})"),
        "nbdkit: debug: memory: get_ready".into(),
        "nbdkit: memory[1]: debug: memory: pread offset=1024 length=512".into(),
        "nbdkit: memory[1]: debug: closed".into(),
    ] {
        assert!(text.lines().any(|said| said == line), "{line} is not in\n{text}");
    }
    let named = said(&link, &["-v", "--name", "in0"]);
    assert!(named.lines().all(|line| line.starts_with("nbdkit[in0]: ")), "{named}");
    let ours = said(PROGRAM.as_ref(), &["-v", "--name=x"]);
    assert!(ours.contains("rbdkit[x]: debug: connection 1: closed\n"), "{ours}");
    let quiet = said(&link, &["-v", "-D", "nbdkit.backend.controlpath=0", "-D", "nbdkit.backend.datapath=0"]);
    assert!(!quiet.contains("debug: memory: ") && quiet.contains("memory[1]: debug: closed"), "{quiet}");
}

#[test]
fn parameters_may_stand_in_files() {
    let directory = TempDir::new();
    std::fs::create_dir(directory.join("d")).unwrap();
    std::fs::write(directory.join("d/disk"), "# the disk\n\n@more\n").unwrap();
    std::fs::write(directory.join("d/more"), "size=2k\n").unwrap();
    let outcome = run(&directory, &["memory", "@d/disk", "--run", "nbdinfo --size \"$uri\""]);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("2048\n", ""));
}

#[test]
fn files_do_not_depend_on_the_callers_mask() {
    use std::os::unix::fs::MetadataExt;
    for mask in ["077", "0"] {
        let directory = TempDir::new();
        let mut command = Command::new("/bin/sh");
        let script = format!("umask {mask}; exec \"$@\"");
        command.args(["-c", &script, "sh", PROGRAM]).current_dir(directory.path());
        let scripts = ["eval", "get_size=umask >mask; echo 1M", "pread=exit 1"];
        let run = ["--run", "nbdinfo --size \"$uri\""];
        command.args(["-U", "socket"]).args(scripts).args(run).env("PATH", path());
        assert_eq!(outcome(&mut command).stdout, "1048576\n");
        assert_eq!(std::fs::metadata(directory.join("socket")).unwrap().mode() & 0o777, 0o755, "{mask}");
        assert_eq!(std::fs::read_to_string(directory.join("mask")).unwrap(), "0022\n");
    }
}

#[test]
fn a_vsock_port_is_listened_on() {
    use rustix::net::{AddressFamily, SocketType};
    let directory = TempDir::new();
    let Ok(ours) = rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None) else {
        let refused = run(&directory, &["-f", "--vsock", "null"]).stderr;
        return assert_eq!(refused, "rbdkit: error: --vsock: this kernel has no AF_VSOCK (modprobe vsock)\n");
    };
    let mut command = rbdkit(&directory);
    // Any port that is free.
    command.args(["-f", "--vsock", "-p", "4294967295", "--print-uri", "null"]);
    let mut server = Running::start(command.stdout(Stdio::piped()));
    let uri = server.wait_for_output("the URI");
    let port = uri.trim_end().strip_prefix("nbd+vsock://1:").unwrap().parse::<u32>().unwrap();
    let taken = rustix::net::bind(&ours, &rbdkit_server::VsockAddress::any(port));
    assert_eq!(taken, Err(rustix::io::Errno::ADDRINUSE));
    let refused = run(&directory, &["-f", "--vsock", "-p", &port.to_string(), "null"]).stderr;
    let message = format!("--vsock: cannot listen on port {port}: it is in use already (-p takes another port)");
    assert_eq!(refused, format!("rbdkit: error: {message}\n"));
    server.signal(Signal::TERM);
    assert_eq!(server.status().code(), Some(0));
}
