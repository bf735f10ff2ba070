//! The command line as scripts use it: ways to listen, captive commands, exit statuses, messages.

use std::path::Path;

use rbdkit_tests::server::{filter, is_nbdkit, program};
use rbdkit_tests::{Client, Finished, Launch, Server, TempDir, free_port, nbdsh, tool};

fn run(arguments: &[&str]) -> Finished {
    tool(program().to_str().expect("a path in UTF-8"), arguments)
}

/// Checks that the program refuses the arguments with status 1 and a message of at most two lines
/// that contains these words.
fn refused(arguments: &[&str], named: &[&str]) {
    // If the program took the arguments after all, this command would end it.
    let finished = run(&[&["-U", "-", "--run", "true"], arguments].concat());
    assert_eq!(finished.code, 1, "{arguments:?}: {}{}", finished.stdout, finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{arguments:?}: {}", finished.stderr);
    for word in named {
        assert!(finished.stderr.contains(word), "{arguments:?}: '{word}' is not in\n{}", finished.stderr);
    }
    let lines = finished.stderr.lines().count();
    assert!(lines <= 2, "{arguments:?}: {lines} lines:\n{}", finished.stderr);
}

#[test]
fn mistakes_are_refused_with_a_line_that_names_them() {
    refused(&["memory", "size=abc"], &["abc"]);
    refused(&["memory", "size=-1"], &["-1"]);
    refused(&["memory"], &["size"]);
    refused(&["memory", "1M", "nosuchkey=1"], &["nosuchkey"]);
    refused(&["file"], &["file"]);
    refused(&["file", "/nonexistent/disk.img"], &["/nonexistent/disk.img"]);
    refused(&["file", "file=/dev/null", "fadvise=wrong"], &["fadvise"]);
    refused(&["nosuchplugin"], &["nosuchplugin"]);
    refused(&["--filter=nosuchfilter", "null"], &["nosuchfilter"]);
    refused(&["data", "data=@@@"], &["data"]);
    refused(&["--filter=cow", "null", "cow-block-size=7"], &["cow-block-size"]);
    refused(&["--filter=cow", "null", "cow-block-size=12345"], &["cow-block-size"]);
    refused(&["--filter=cache", "null", "cache=wrong"], &["cache", "writeback"]);
    refused(&["--filter=offset", "memory", "1M", "offset=wrong"], &["offset"]);
    refused(&["--filter=delay", "null", "rdelay=wrong"], &["rdelay"]);
    refused(&["--filter=error", "null", "error-rate=wrong"], &["error-rate"]);
    refused(&[], &["plugin"]);
}

#[test]
fn mistakes_in_options_are_refused() {
    for arguments in
        [&["--nosuchoption", "null"][..], &["-p", "wrong", "null"], &["-t", "wrong", "null"], &["-U", "", "null"]]
    {
        let finished = run(arguments);
        assert_eq!(finished.code, 1, "{arguments:?}: {}{}", finished.stdout, finished.stderr);
    }
    let dir = TempDir::new();
    let taken = dir.file("taken", b"");
    refused(&["-U", taken.to_str().expect("UTF-8"), "null"], &["taken"]);
    refused(&["-U", "/nonexistent/socket", "null"], &["/nonexistent/socket"]);
}

#[test]
fn a_file_that_is_not_a_component_is_refused() {
    if is_nbdkit() {
        return;
    }
    let dir = TempDir::new();
    for bytes in [&b""[..], b"\0asm", b"\0asm\x01\0\0\0", b"#!/bin/sh\n"] {
        let file = dir.file("bad.wasm", bytes);
        refused(&["--wasm-filter", file.to_str().expect("UTF-8"), "null"], &["bad.wasm"]);
    }
    refused(&["--wasm-filter", "/nonexistent.wasm", "null"], &["/nonexistent.wasm"]);
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let dir = TempDir::new();
    let (socket, pid_file) = (dir.join("sock"), dir.join("pid"));
    for _ in 0..2 {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let finished = run(&["-U", &text(&socket), "-P", &text(&pid_file), "memory", "size=abc"]);
        assert_eq!(finished.code, 1);
        assert!(!socket.exists() && !pid_file.exists());
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let version = run(&["--version"]).ok();
    assert!(version.contains(if is_nbdkit() { "nbdkit 1." } else { "rbdkit 0." }), "{version}");
    assert_eq!(run(&["-V"]).ok(), version);
    let help = run(&["--help"]).ok();
    for option in ["--filter", "--exportname", "--foreground", "--pidfile", "--port", "--readonly", "--run", "--unix"] {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }
    assert!(run(&["memory", "--help"]).ok().contains("size"));
    assert!(run(&["--filter=cow", "memory", "--help"]).ok().contains("cow-block-size"));
}

#[test]
fn dump_config_and_dump_plugin_are_lines_of_key_and_value() {
    let config = run(&["--dump-config"]).ok();
    for key in ["binary=", "name=", "version=", "version_major=", "version_minor=", "host_os=linux"] {
        assert!(config.lines().any(|line| line.starts_with(key)), "{key} is not in\n{config}");
    }
    let plugin = run(&["memory", "--dump-plugin"]).ok();
    for line in ["name=memory", "max_thread_model=parallel", "magic_config_key=size"] {
        assert!(plugin.lines().any(|l| l == line), "{line} is not in\n{plugin}");
    }
}

#[test]
fn the_server_raises_its_limit_of_descriptors_to_the_hard_limit() {
    let script = r#"ulimit -Sn 100 && exec "$0" -U - null --run 'ulimit -Sn; ulimit -Hn'"#;
    let said = tool("sh", ["-c".as_ref(), script.as_ref(), program().as_os_str()]).ok();
    let limits: Vec<&str> = said.lines().collect();
    assert!(limits.len() == 2 && limits[0] == limits[1] && limits[0] != "100", "{limits:?}");
}

#[test]
fn a_captive_command_has_its_variables_and_its_status_is_ours() {
    let say =
        "echo \"uri=$uri\"; echo \"unixsocket=$unixsocket\"; echo \"port=$port\"; echo \"exportname=$exportname\"";
    let said = run(&["-U", "-", "-e", "disk", "memory", "1M", "--run", say]).ok();
    let value = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key} is not in\n{said}")).to_owned()
    };
    let socket = value("unixsocket=");
    assert_eq!(value("uri="), format!("nbd+unix:///disk?socket={socket}"));
    assert_eq!((value("port=").as_str(), value("exportname=").as_str()), ("", "disk"));
    assert!(!Path::new(&socket).exists(), "the private socket is removed");
    assert_eq!(run(&["-U", "-", "null", "--run", "exit 7"]).code, 7);
    assert_eq!(run(&["-U", "-", "null", "--run", "kill -9 $$"]).code, 137);
    assert_eq!(run(&["-U", "-", "null", "--run", "true"]).code, 0);
}

#[test]
fn a_captive_client_is_served() {
    let size = run(&["-U", "-", "memory", "3M", "--run", "nbdinfo --size \"$uri\""]).ok();
    assert_eq!(size.trim(), "3145728");
    let filters = ["-U", "-", "--filter=readahead", "--filter=cow", "memory", "3M", "--run", "nbdinfo --size \"$uri\""];
    assert_eq!(run(&filters).ok().trim(), "3145728");
}

#[test]
fn a_bare_word_goes_to_the_plugin_and_keys_to_the_filters_first() {
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 1 << 20);
    let server = Launch::new(["--filter=offset", "file"]).arg(&file).arg("offset=4096").start();
    assert_eq!(server.client().size, (1 << 20) - 4096);
}

#[test]
fn filters_stand_in_the_order_of_the_command_line() {
    // The first filter is nearest to the client, so this is offset 64K in a disk that begins at
    // 32K.
    let dir = TempDir::new();
    let mut bytes = vec![0; 1 << 20];
    bytes[96 << 10] = 0x42;
    let file = dir.file("disk.img", &bytes);
    let server = Launch::new(["--filter=cow", "--filter=offset", "file"]).path("file", &file).arg("offset=96K").start();
    assert_eq!(server.client().read(0, 1), Ok(vec![0x42]));
}

#[test]
fn filters_come_from_files_as_well() {
    if is_nbdkit() {
        return;
    }
    for name in ["nofilter", "readahead", "cow", "cache"] {
        let server = Launch::new(["--wasm-filter"]).arg(filter(name)).arg("memory").arg("1M").start();
        let mut client = server.client();
        client.write(5, b"hello").expect("a write");
        assert_eq!(client.read(4, 7).as_deref(), Ok(&b"\0hello\0"[..]), "{name}");
    }
}

#[test]
fn the_server_listens_on_tcp() {
    let port = free_port().to_string();
    let said =
        run(&["-i", "127.0.0.1", "-p", &port, "memory", "1M", "--run", "echo $port; nbdinfo --size \"$uri\""]).ok();
    assert_eq!(said, format!("{port}\n1048576\n"));
}

#[test]
fn a_pid_file_that_cannot_be_written_is_an_error() {
    let finished = run(&["-f", "-U", "-", "-P", "/nonexistent/pid", "memory", "1M"]);
    assert_eq!(finished.code, 1);
    assert!(finished.stderr.contains("/nonexistent/pid"), "{}", finished.stderr);
}

#[test]
fn one_client_is_served_on_standard_input_and_output() {
    let program = program();
    let script =
        format!("h = nbd.NBD(); h.connect_command([{:?}, '-s', 'memory', '1M']); print(h.get_size())", program);
    assert_eq!(nbdsh("", &script).ok().trim(), "1048576");
}

#[test]
fn a_socket_is_inherited_as_systemd_passes_it() {
    let program = program();
    let script = format!(
        "h = nbd.NBD(); h.connect_systemd_socket_activation([{program:?}, '--filter=cow', 'memory', '1M']); \
         h.pwrite(b'x', 0); print(h.get_size())"
    );
    assert_eq!(nbdsh("", &script).ok().trim(), "1048576");
}

#[test]
fn without_f_the_server_goes_into_the_background_once_it_listens() {
    let dir = TempDir::new();
    let (socket, pid_file) = (dir.join("sock"), dir.join("pid"));
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    run(&["-U", &text(&socket), "-P", &text(&pid_file), "memory", "1M"]).ok();
    let pid = std::fs::read_to_string(&pid_file).expect("the pid file");
    let mut client = Client::connect(&socket);
    assert_eq!(client.read(0, 1), Ok(vec![0]));
    client.disconnect();
    tool("kill", [pid.trim()]).ok();
    tool("tail", [&format!("--pid={}", pid.trim()), "-f", "/dev/null"]).ok();
}

#[test]
fn sigint_and_sigterm_end_the_server_with_status_0() {
    for signal in ["INT", "TERM", "QUIT"] {
        let server = Server::start(["--filter=cow", "memory", "1M"]);
        // A client is connected.
        let mut client = server.client();
        client.write(0, b"x").expect("a write");
        tool("kill", ["-s", signal, &server.pid().to_string()]).ok();
        let mut stream = client.into_stream();
        assert!(stream.is_closed());
        server.wait_until("it has ended", |server| server.open_files() == 0);
    }
}

#[test]
fn read_only_is_read_only_for_every_stack() {
    for filters in [&[][..], &["--filter=nofilter"], &["--filter=cow"], &["--filter=cache"]] {
        let server = Server::start([&["-r"], filters, &["memory", "1M"]].concat());
        let mut client = server.client();
        assert!(client.can(rbdkit_tests::raw::can::READ_ONLY), "{filters:?}");
        assert_eq!(client.write(0, b"x"), Err(rbdkit_tests::raw::error::EPERM), "{filters:?}");
    }
}

#[test]
fn a_symlink_named_nbdkit_behaves_like_it() {
    let dir = TempDir::new();
    let link = dir.join("nbdkit");
    std::os::unix::fs::symlink(std::fs::canonicalize(program()).expect("the program"), &link).expect("a link");
    let link = link.to_str().expect("UTF-8");
    assert_eq!(tool(link, ["-U", "-", "memory", "1M", "--run", "nbdinfo --size $uri"]).ok().trim(), "1048576");
    assert_eq!(tool(link, ["memory", "size=abc"]).code, 1);
}
