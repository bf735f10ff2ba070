//! A mistake gives one line and exit status 1, and nothing is started.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::support::{Outcome, TempDir, outcome, rbdkit, run, words};

fn refused(message: &str) -> Outcome {
    Outcome { status: 1, stdout: String::new(), stderr: format!("rbdkit: error: {message}\n") }
}

#[test]
fn a_mistake_on_the_command_line_is_one_line() {
    let directory = TempDir::new();
    for (line, message) in [
        ("", "no plugin given, for example: rbdkit file disk.img (see --help)"),
        ("--redonly null", "unknown option '--redonly': did you mean --readonly?"),
        ("null --export", "option '--exportname' requires an argument"),
        ("--foreground=yes null", "option '--foreground' does not take an argument"),
        ("--vsock -U x null", "-U and --vsock cannot be used together"),
        (
            "memory @no-such-file",
            "@no-such-file: cannot read the file with parameters: No such file or directory (a \
            value that begins with @ is KEY=@...)",
        ),
        ("--name= null", "--name: the name has 0 bytes, it has to have 1 to 64"),
        ("--log=/no/such/directory/log null", "--log=/no/such/directory/log: No such file or directory"),
        ("--log=fd:1000000 null", "--log=fd:1000000: Bad file descriptor"),
        ("--tls=maybe null", "--tls=maybe: is not one of off, on, require"),
        ("-p 1 -U x null", "-p and -U cannot be used together"),
        ("-p nosuchservice -f null", "--port: 'nosuchservice' is neither a port nor the name of a TCP service"),
        ("-t many null", "--threads: 'many' is not a whole number from 0 to 4294967295"),
        ("--limit=connections=-1 null", "--limit connections=-1: is not a whole number from 1 on"),
        ("--log=file null", "--log=file: is not one of default, stderr, syslog, null, /PATH, fd:N"),
        ("--user=no-such-user null", "--user: 'no-such-user' is not a user, by name or number"),
        ("--group=no-such-group null", "--group: 'no-such-group' is not a group, by name or number"),
        ("./nbdkit-x-plugin.so", "cannot open plugin './nbdkit-x-plugin.so': No such file or directory"),
        ("--dump-plugin", "--dump-plugin needs the name of a plugin: rbdkit PLUGIN --dump-plugin"),
        ("-U . null", "--unix: .: exists already (remove it if no server listens on it)"),
        ("-U no/such null", "--unix: no/such: No such file or directory"),
        ("-i 192.0.2.1 -f null", "cannot listen on 192.0.2.1:10809: Cannot assign requested address"),
        ("--filter-limit=cpu=1s null", "--filter-limit cpu=1s: no filter is given"),
        ("--filter-param=cow:x=1 null", "--filter-param cow: no filter is given"),
        ("--wasm-filter=no.wasm null", "cannot open filter 'no.wasm': No such file or directory"),
        ("--wasm-filter=. null", "cannot open filter '.': is a directory"),
        ("--filter=./no.wasm null", "cannot open filter './no.wasm': No such file or directory"),
    ] {
        assert_eq!(run(&directory, &words(line)), refused(message), "{line}");
    }
    if !std::path::Path::new("/sys/fs/selinux").exists() {
        let outcome = run(&directory, &words("--selinux-label=system_u:object_r:svirt_socket_t:s0 -U socket null"));
        assert_eq!(outcome, refused("--selinux-label: SELinux is not enabled on this machine"));
    }
    assert_eq!(directory.names(), [""; 0]);
}

#[test]
fn a_mistake_of_the_plugins_reaches_the_caller_and_nothing_was_started() {
    let directory = TempDir::new();
    for line in ["memory", "memory 1M no-such-parameter=1", "memory size=big", "file no-such-file"] {
        for foreground in ["", "-f", "--run true"] {
            let all = format!("-U socket -P pid {foreground} {line}");
            let outcome = run(&directory, &all.split_whitespace().collect::<Vec<_>>());
            assert_eq!(outcome.status, 1, "{all}");
            assert!(
                outcome.stderr.starts_with("rbdkit: error: ") && outcome.stderr.lines().count() == 1,
                "{outcome:?}"
            );
        }
    }
    assert_eq!(directory.names(), [""; 0]);
}

#[test]
fn a_word_that_no_plugin_takes_is_named() {
    let directory = TempDir::new();
    let outcome = run(&directory, &["eval", "word"]);
    assert_eq!(outcome, refused("eval: expecting key=value on the command line but got: word"));
}

#[test]
fn a_pid_file_that_cannot_be_written_takes_the_socket_along() {
    let directory = TempDir::new();
    for foreground in [&[][..], &["-f"], &["--run", "touch ran"]] {
        let outcome = outcome(rbdkit(&directory).args(["-U", "socket", "-P", "no/pid", "null"]).args(foreground));
        let path = directory.join("no/pid");
        assert_eq!(outcome, refused(&format!("--pidfile: {}: No such file or directory", path.display())));
        assert_eq!(directory.names(), [""; 0]);
    }
}

#[test]
fn a_socket_that_exists_is_left_alone() {
    let directory = TempDir::new();
    std::fs::write(directory.join("socket"), "mine").unwrap();
    let outcome = run(&directory, &["-U", "socket", "-P", "pid", "null"]);
    assert_eq!(outcome, refused("--unix: socket: exists already (remove it if no server listens on it)"));
    assert_eq!(std::fs::read_to_string(directory.join("socket")).unwrap(), "mine");
    assert_eq!(directory.names(), ["socket"]);
}

#[test]
fn a_socket_path_that_the_kernel_cannot_hold_is_refused() {
    let directory = TempDir::new();
    let name = "s".repeat(108);
    let outcome = run(&directory, &["-U", &name, "null"]);
    let length = directory.join(&name).as_os_str().len();
    assert_eq!(
        outcome,
        refused(&format!("--unix: {name}: the path is too long: {length} bytes, at most 107 are possible"))
    );
}

#[test]
fn an_export_name_that_no_client_could_ask_for_is_refused() {
    let directory = TempDir::new();
    let named = |name: &[u8]| {
        let name = std::ffi::OsStr::from_bytes(name);
        outcome(rbdkit(&directory).args(["-U", "socket", "--run", "touch ran", "null", "-e"]).arg(name))
    };
    assert_eq!(named(b"disk\xff"), refused("-e: 'disk\u{fffd}' is not UTF-8 text"));
    let wrong = refused("-e: the name is too long: 4097 bytes, the protocol allows 4096");
    assert_eq!(named(&[b'x'; 4097]), wrong);
    assert_eq!(directory.names(), [""; 0]);
    assert_eq!(named(&[b'x'; 4096]).status, 0);
}

#[test]
fn what_would_read_the_clients_connection_as_its_standard_input_is_refused() {
    let directory = TempDir::new();
    for (args, named) in [
        (&["sh", "-"][..], "script=-"),
        (&["sh", "/dev/stdin"], "script=/dev/stdin"),
        (&["data", "</dev/stdin"], "</dev/stdin"),
        (&["file", "/dev/fd/0"], "file=/dev/fd/0"),
        (&["ssh", "host=localhost", "/disk", "password=-"], "password"),
        (&["ssh", "host=localhost", "/disk", "password=+/dev/stdin"], "password"),
        (&["curl", "http://localhost/", "user=me", "password=-"], "password"),
        (&["curl", "http://localhost/", "user=me", "password=+/proc/self/fd/0"], "password"),
        (&["curl", "http://localhost/", "proxy-password=-"], "proxy-password"),
        (&["curl", "http://localhost/", "cookie=-"], "cookie"),
        (&["curl", "http://localhost/", "cookiefile=/dev/stdin"], "cookiefile=/dev/stdin"),
        (&["null", "--filter=error", "error-file=/dev/stdin"], "error-file=/dev/stdin"),
    ] {
        let mut command = rbdkit(&directory);
        let mut child = command
            .arg("-s")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The server may have ended before it reads this.
        let _ = child.stdin.take().unwrap().write_all(b"get_size) echo 1M ;;\n");
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{args:?}: {stderr}");
        let why = ": standard input is the client's connection (-s), so it cannot be read for this\n";
        assert!(stderr.starts_with("rbdkit: error: ") && stderr.ends_with(why), "{args:?}: {stderr}");
        assert!(stderr.contains(named) && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }
}

#[test]
fn a_symbolic_link_as_pid_file_leaves_what_it_leads_to_as_it_is() {
    let directory = TempDir::new();
    std::fs::write(directory.join("precious"), "7").unwrap();
    std::os::unix::fs::symlink("precious", directory.join("pid")).unwrap();
    let wrong = format!(
        "--pidfile: {}: is a symbolic link to a file, which is not overwritten (give the name of the file itself)",
        directory.join("pid").display()
    );
    assert_eq!(run(&directory, &["-U", "socket", "-P", "pid", "null"]), refused(&wrong));
    assert_eq!(std::fs::read_to_string(directory.join("precious")).unwrap(), "7");
    assert_eq!(directory.names(), ["pid", "precious"]);
}

#[test]
fn a_filter_file_has_to_be_the_one_that_was_named() {
    let directory = TempDir::new();
    std::fs::write(directory.join("x.wasm"), "not a component").unwrap();
    let outcome = run(&directory, &["--wasm-filter=x.wasm", "null"]);
    assert_eq!(outcome, refused("x.wasm: it is not a WebAssembly component"));
    // sha256sum of "not a component"
    let digest =
        crate::support::output_of("sha256sum", &[directory.join("x.wasm").to_str().unwrap()])[..64].to_string();
    let with = |digest: &str| run(&directory, &[format!("--wasm-filter=x.wasm@sha256:{digest}"), "null".into()]);
    assert_eq!(with(&digest), refused("x.wasm: it is not a WebAssembly component"));
    assert_eq!(
        with(&"0".repeat(64)),
        refused(&format!("filter 'x.wasm' is not the file that was named: its SHA-256 digest is {digest}"))
    );
    assert_eq!(with("12"), refused("--wasm-filter: '12' is not a SHA-256 digest: 64 hexadecimal digits"));
}

#[test]
fn an_unknown_plugin_or_filter_is_answered_with_those_there_are() {
    let directory = TempDir::new();
    let outcome = run(&directory, &["memroy", "1M"]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.starts_with("rbdkit: error: cannot open plugin 'memroy': did you mean memory? There are "));
    let outcome = run(&directory, &["--filter=no-such-filter", "null"]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.starts_with("rbdkit: error: cannot open filter 'no-such-filter': "));
    assert!(outcome.stderr.ends_with("(--wasm-filter FILE takes one of your own)\n"));
}

#[test]
fn messages_begin_with_the_name_under_which_the_program_was_installed() {
    let directory = TempDir::new();
    let link = directory.join("nbdkit");
    std::os::unix::fs::symlink(crate::support::PROGRAM, &link).unwrap();
    let outcome = outcome(&mut Command::new(&link));
    assert_eq!(outcome.stderr, "nbdkit: error: no plugin given, for example: rbdkit file disk.img (see --help)\n");
}
