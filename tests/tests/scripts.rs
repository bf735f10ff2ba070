//! Scripts and helper programs that fail, hang, or outlive their call, below a real server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::{Stream, cmd, error};
use rbdkit_tests::server::{children, program};
use rbdkit_tests::{Launch, Server, TempDir, free_port, tool, wait};

const READ_ZEROES: &str = "pread=head -c $3 /dev/zero";

/// The processes of a program, by a word of their command lines that only it has.
fn processes(word: &str) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let has_word = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_word).collect()
}

/// A number of seconds that no other process sleeps for.
fn seconds(unique: u32) -> String {
    format!("{}", 1_000_000 + u64::from(std::process::id()) * 100 + u64::from(unique))
}

#[test]
fn errors_that_have_no_client_to_go_to_are_in_the_log() {
    let server = Server::start([
        "eval",
        "get_size=echo 1M",
        READ_ZEROES,
        "close=echo the close failed >&2; exit 1",
        "unload=echo the unload failed >&2; exit 1",
    ]);
    let mut client = server.client();
    assert!(client.read(0, 512).is_ok());
    client.disconnect();
    server.wait_for_log("/close: the close failed");
    let stderr = server.stop().stderr;
    let errors: Vec<&str> = stderr.lines().filter(|line| line.contains("error: ")).collect();
    assert_eq!(errors.len(), 2, "{stderr}");
    assert!(errors[1].ends_with("/unload: the unload failed"), "{stderr}");
}

#[test]
fn zero_and_cache_of_a_script_take_few_programs_and_no_memory() {
    let dir = TempDir::new();
    let log = dir.join("log");
    let write = format!("pwrite=echo $1 $3 $4 >>{}; cat >/dev/null", log.display());
    let read = format!("pread=echo $1 $3 $4 >>{}; head -c $3 /dev/zero", log.display());
    let server = Server::start(["eval", "get_size=echo 1G", &read, &write, "can_cache=echo emulate"]);
    let mut client = server.client();
    let before = server.proc_status("VmHWM:");
    let calls = |kind: u16, client: &mut rbdkit_tests::Client| {
        let cookie = client.submit(kind, 0, 4096, 128 << 20, &[]).expect("a request");
        let reply = client.receive().expect("a reply");
        assert!(reply.result.is_ok(), "{cookie}");
        let text = std::fs::read_to_string(&log).expect("the script's log");
        std::fs::remove_file(&log).expect("the script's log");
        text
    };
    assert_eq!(calls(cmd::WRITE_ZEROES, &mut client), "pwrite 67108864 4096\npwrite 67108864 67112960\n");
    assert_eq!(calls(cmd::CACHE, &mut client), "pread 67108864 4096\npread 67108864 67112960\n");
    let grown = server.proc_status("VmHWM:") - before;
    assert!(grown < 16 << 10, "{grown} KiB");
}

fn stop_with_a_hanging(method: &str, sleeps: &str) {
    let script = format!("{method}=trap '' TERM; sleep {sleeps}");
    let others = ["get_size=echo 1M", READ_ZEROES].into_iter().filter(|word| !word.starts_with(method));
    let server = Server::start(["eval", &script].into_iter().chain(others));
    let uri = server.uri();
    let client = std::thread::spawn(move || tool("nbdsh", ["-u", &uri, "-c", "h.pread(512, 0)\nh.shutdown()"]));
    server.wait_until("the script runs", |_| !processes(sleeps).is_empty());
    server.stop();
    client.join().expect("the client");
    wait::until("the script is gone", || processes(sleeps).is_empty());
}

#[test]
fn a_script_that_hangs_does_not_hold_the_end_of_the_server_and_ends_with_it() {
    let unload = seconds(0);
    // At the same time, because each takes as long as a stop waits for operations that hang.
    std::thread::scope(|scope| {
        for (method, number) in ["pread", "get_size", "open", "can_write", "close"].into_iter().zip(1..) {
            scope.spawn(move || stop_with_a_hanging(method, &seconds(number)));
        }
    });
    let server = Server::start(["eval", "get_size=echo 1M", READ_ZEROES, &format!("unload=sleep {unload}; true")]);
    let stderr = server.stop().stderr;
    assert!(stderr.contains("the unload method was killed"), "{stderr}");
    wait::until("the script is gone", || processes(&unload).is_empty());
}

/// With the script gone the write ends and the server could stop by itself at the same time, so it
/// is tried several times: the process always ends with the status of the second signal.
#[test]
fn a_second_signal_kills_a_script_that_writes() {
    for _ in 0..10 {
        end_at_once_with_a_script_that_writes();
    }
}

fn end_at_once_with_a_script_that_writes() {
    let sleeps = seconds(9);
    let write = format!("pwrite=sleep {sleeps}; true");
    let mut server = Server::start(["eval", "get_size=echo 1M", READ_ZEROES, &write]);
    let mut client = server.client();
    client.submit(cmd::WRITE, 0, 0, 512, &[1; 512]).expect("a request");
    server.wait_until("the script runs", |_| !processes(&sleeps).is_empty());
    tool("kill", [server.pid().to_string()]).ok();
    // A client that comes now is refused, which shows that the first signal has arrived.
    server.wait_until("the server stops", |server| std::os::unix::net::UnixStream::connect(server.socket()).is_err());
    assert!(server.is_alive(), "a write is waited for");
    let outcome = server.stop();
    assert_eq!(outcome.status.code(), Some(143), "{}", outcome.stderr);
    wait::until("the script is gone", || processes(&sleeps).is_empty());
}

#[test]
fn what_a_header_script_says_is_in_the_error_and_in_the_log() {
    let url = format!("http://127.0.0.1:{}/", free_port());
    for key in ["header-script", "cookie-script"] {
        let script = format!("{key}=echo the token has expired >&2; echo ask for another >&2; exit 7");
        let server = Server::start(["curl", &url, &script]);
        tool("nbdinfo", [&server.uri()]).fails();
        server.wait_for_log(&format!("{key}: the script failed (exit status: 7): the token has expired"));
        server.wait_for_log(&format!("curl: {key}: ask for another"));
    }
}

#[test]
fn without_its_helper_a_server_says_so_and_goes_on() {
    let url = format!("http://127.0.0.1:{}/", free_port());
    let server = Server::start(["curl", &url, "header-script=echo a: b"]);
    // It listens before its helper is ready, and greets after that.
    Stream::connect(server.socket()).greet(3).expect("a greeting");
    let helper = children(server.pid());
    assert_eq!(helper.len(), 1, "a server that is confined has a helper");
    tool("kill", ["-KILL", &helper[0].to_string()]).ok();
    for _ in 0..2 {
        tool("nbdinfo", [&server.uri()]).fails();
        server.wait_for_log("header-script: the helper that starts it is gone");
    }
    assert!(server.stop().status.success());
}

/// An NBD server in Python that SIGTERM does not end. It gets its listening socket as descriptor 3.
const STUBBORN: &str = "import signal, socket, struct, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.socket(fileno=3)
connection, _ = listener.accept()
connection.sendall(struct.pack('>8sQQI124x', b'NBDMAGIC', 0x420281861253, 1 << 20, 1))
while True:
    time.sleep(3600)
";

#[test]
fn the_nbd_plugins_command_is_killed_if_it_does_not_end() {
    let server = Server::start(["nbd", "command=python3", "arg=-c", &format!("arg={STUBBORN}")]);
    assert_eq!(server.client().size, 1 << 20);
    let began = Instant::now();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("it ended with signal: 9"), "{}", outcome.stderr);
    assert!(began.elapsed() < Duration::from_secs(20), "a server that does not write is not waited for");
}

#[test]
fn messages_do_not_depend_on_the_directory_of_the_script() {
    let dir = TempDir::new();
    let script = dir.file(
        "disk.sh",
        b"#!/bin/sh\ncase $1 in get_size) echo 1M;; close) echo broken >&2; exit 1;; *) exit 2;; esac\n",
    );
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("an executable");
    let server = Launch::new(["sh"]).path("script", Path::new(&script)).start();
    server.client().disconnect();
    server.wait_for_log("disk.sh: broken");
}

/// A disk whose reads at offset 4096 exit with this status after they have printed the data.
fn exits_with(status: u32) -> Server {
    let read = format!("pread=head -c $3 /dev/zero; test $4 -ne 4096 || exit {status}");
    Server::start(["eval", "get_size=echo 1M", &read])
}

#[test]
fn a_script_ends_the_server_and_the_client_gets_its_answer_first() {
    for (status, answer) in [(4, Ok(vec![0; 512])), (5, Err(error::ESHUTDOWN))] {
        let server = exits_with(status);
        let mut client = server.client();
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
        assert_eq!(client.read(4096, 512), answer, "{status}");
        let outcome = server.wait();
        assert!(outcome.status.success(), "{status}: {}\n{}", outcome.status, outcome.stderr);
    }
}

#[test]
fn a_script_disconnects_its_client_and_no_other() {
    for (status, answer) in [(6, None), (7, Some(Ok(vec![0; 512]))), (8, Some(Err(error::ESHUTDOWN)))] {
        let server = exits_with(status);
        let (mut client, mut other) = (server.client(), server.client());
        let cookie = client.submit(cmd::READ, 0, 4096, 512, &[]).expect("a request");
        match answer {
            None => assert!(client.receive().is_err(), "{status}: a reply"),
            Some(answer) => {
                let reply = client.receive().expect("a reply");
                assert_eq!((reply.cookie, reply.result), (cookie, answer), "{status}");
                assert!(client.receive().is_err(), "{status}: the connection goes on");
            }
        }
        assert_eq!(other.read(0, 512), Ok(vec![0; 512]), "{status}");
        assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]), "{status}");
        assert!(server.stop().status.success(), "{status}");
    }
}

#[test]
fn the_command_of_run_ends_with_the_server_that_a_script_ends() {
    let command = "nbdsh -u \"$uri\" -c 'h.pread(512, 4096)' && exec sleep 1000";
    let mut rbdkit = std::process::Command::new(program());
    rbdkit.args(["-U", "-", "eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero; exit 4", "--run", command]);
    rbdkit.env("PATH", "/usr/bin:/bin");
    let output = wait::output(&mut rbdkit);
    // The command ended by the signal that the server passed on to it.
    assert_eq!(output.status.code(), Some(128 + 15), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_default_export_that_does_not_exist_is_refused_as_nbdkit_refuses_it() {
    let dir = TempDir::new();
    let script = dir.program(
        "disk",
        "#!/bin/sh\ncase $1 in get_size) echo 1M;; default_export) echo ENOENT none >&2; exit 1;; *) exit 2;; esac\n",
    );
    for program in [program(), "nbdkit".into()] {
        let run = |command: &str| {
            let mut server = std::process::Command::new(&program);
            server.args(["-U", "-", "sh"]).arg(&script).args(["--run", command]);
            let output = wait::output(&mut server);
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            (output.status.success(), text)
        };
        let (opened, text) = run("nbdinfo --size \"$uri\"");
        assert!(!opened && text.contains("No such file or directory"), "{}: {text}", program.display());
        let (listed, text) = run("nbdinfo --list --json \"$uri\"");
        assert!(listed && text.contains("\"exports\": []"), "{}: {text}", program.display());
        let (opened, text) = run("nbdinfo --size \"nbd+unix:///other?socket=$unixsocket\"");
        assert!(opened && text.contains("1048576"), "{}: {text}", program.display());
    }
}
