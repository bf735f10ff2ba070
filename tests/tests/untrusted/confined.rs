//! The second wall: a process that serves can do nothing else. What it is denied is tested in
//! `host/confine`.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use rbdkit_slow_server::{Content, Identity, Rules, SlowServer};
use rbdkit_tests::server::children;
use rbdkit_tests::{Launch, Server, TempDir, free_port, nbdsh, tool, wait};

/// A field of `/proc/PID/task/*/status` for every thread.
fn of_threads(server: &Server, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the server's threads");
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    status
        .filter_map(|status| Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned()))
        .collect()
}

/// Checks that a server started with `-v` says that it is confined, and that every thread is.
fn is_confined(server: &Server) {
    server.wait_for_log("confined: no new privileges; ");
    assert!(!server.stderr().contains("not confined"), "{}", server.stderr());
    assert!(of_threads(server, "NoNewPrivs:").iter().all(|value| value == "1"));
    assert!(of_threads(server, "Seccomp:").iter().all(|value| value == "2"));
}

#[test]
fn every_thread_is_confined_and_v_says_so() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk", 1 << 20);
    let launch = || Launch::new(["-v", "--filter=readahead", "--filter=cow", "--filter=cache"]);
    let server = launch().arg("file").path("file", &disk).start();
    let mut client = server.client();
    client.write(0, &[1; 70_000]).expect("a write");
    client.read(0, 70_000).expect("a read");
    is_confined(&server);
    let threads = of_threads(&server, "Seccomp:").len();
    assert!(threads < 40, "{threads} threads");
    client.disconnect();
    assert!(server.stop().status.success());
    // It is confined without `-v` as well.
    let quiet = Launch::new(["file"]).path("file", &disk).start();
    assert_eq!(quiet.client().size, 1 << 20);
    quiet.wait_until("every thread is confined", |quiet| {
        of_threads(quiet, "NoNewPrivs:").iter().all(|value| value == "1")
            && of_threads(quiet, "Seccomp:").iter().all(|value| value == "2")
    });
    let server = launch().args(["--no-confine", "file"]).path("file", &disk).start();
    server.wait_for_log("not confined (--no-confine)");
    assert!(of_threads(&server, "Seccomp:").iter().all(|value| value == "0"));
}

#[test]
fn what_is_beside_the_served_directory_is_out_of_reach_and_what_is_in_it_is_not() {
    let dir = TempDir::new();
    std::fs::create_dir(dir.join("served")).expect("a directory");
    std::fs::create_dir(dir.join("other")).expect("a directory");
    std::fs::write(dir.join("served/a"), [7; 4096]).expect("a file");
    std::fs::write(dir.join("other/b"), [8; 4096]).expect("a file");
    let server = Launch::new(["file"]).path("dir", &dir.join("served")).start();
    assert_eq!(server_read(&server, "a"), "7");
    // This file is newer than the server.
    std::fs::write(dir.join("served/c"), [9; 4096]).expect("a file");
    assert_eq!(server_read(&server, "c"), "9");
}

/// This is what virt-v2v does: it starts the server with an empty directory, and then makes links.
#[test]
fn a_link_out_of_the_served_directory_is_followed_if_only_the_servers_user_could_make_it() {
    let dir = TempDir::new();
    let served = dir.join("served");
    std::fs::create_dir(&served).expect("a directory");
    let mode = |mode| std::fs::set_permissions(&served, std::fs::Permissions::from_mode(mode)).expect("a mode");
    mode(0o700);
    let disk = dir.file("disk", &[8; 4096]);
    for filters in [&["-v"][..], &["-v", "--filter=cow"]] {
        let server = Launch::new(filters).arg("file").path("dir", &served).start();
        let link = served.join("disk0");
        std::os::unix::fs::symlink(&disk, &link).expect("a link");
        assert_eq!(server_read(&server, "disk0"), "8");
        let uri = format!("nbd+unix:///disk0?socket={}", server.socket().display());
        nbdsh(&uri, "h.connect_uri(uri)\nassert not h.is_read_only()\nh.pwrite(bytes([8]) * 512, 0)").ok();
        let listed = tool("nbdinfo", ["--list", &format!("nbd+unix://?socket={}", server.socket().display())]).ok();
        assert!(listed.contains("export=\"disk0\""), "{listed}");
        mode(0o770);
        assert_eq!(server_read(&server, "disk0"), "refused");
        server.wait_for_log("disk0 leads out of the directory, and is not followed because others");
        mode(0o700);
        is_confined(&server);
        server.stop();
        std::fs::remove_file(link).expect("the link");
    }
}

#[test]
fn a_file_that_replaces_the_served_one_is_out_of_reach() {
    let dir = TempDir::new();
    std::fs::write(dir.join("disk"), [7; 4096]).expect("a file");
    let server = Launch::new(["file"]).path("file", &dir.join("disk")).start();
    assert_eq!(server_read(&server, ""), "7");
    // A file that is written in place is still the same file.
    std::fs::write(dir.join("disk"), [8; 4096]).expect("the file");
    assert_eq!(server_read(&server, ""), "8");
    std::fs::write(dir.join("new"), [9; 4096]).expect("a file");
    std::fs::rename(dir.join("new"), dir.join("disk")).expect("another file under the name");
    assert_eq!(server_read(&server, ""), "refused");
    server.wait_for_log("disk: Permission denied");
    let free = Launch::new(["--no-confine", "file"]).path("file", &dir.join("disk")).start();
    std::fs::write(dir.join("newer"), [10; 4096]).expect("a file");
    std::fs::rename(dir.join("newer"), dir.join("disk")).expect("another file under the name");
    assert_eq!(server_read(&free, ""), "10");
}

fn server_read(server: &Server, export: &str) -> String {
    let uri = format!("nbd+unix:///{export}?socket={}", server.socket().display());
    let script = "
h = nbd.NBD()
try:
    h.connect_uri(uri)
    print(h.pread(1, 0)[0])
except nbd.Error:
    print('refused')";
    nbdsh(&uri, script).ok().trim().to_owned()
}

#[test]
fn a_command_and_a_script_are_not_confined() {
    let run = |arguments: &[&str]| {
        let output = wait::output(Command::new(rbdkit_tests::server::program()).args(arguments));
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let command = "grep -h NoNewPrivs /proc/self/status; nbdinfo --size $uri";
    let (out, _) = run(&["-U", "-", "memory", "1M", "--run", command]);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["NoNewPrivs:", "0", "1048576"]);
    let (out, err) = run(&[
        "-v",
        "-U",
        "-",
        "eval",
        "get_size=cat /etc/passwd >/dev/null && echo 1M",
        "--run",
        "nbdinfo --size $uri",
    ]);
    assert_eq!(out.trim(), "1048576");
    assert!(err.contains("not confined: the plugin does not say what it reaches"), "{err}");
}

/// An NBD server on a TCP port, killed when it is dropped.
struct Far(Child);

impl Far {
    fn at(port: u16) -> Far {
        let mut command = Command::new(rbdkit_tests::server::program());
        command.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "pattern", "1M"]).stdin(Stdio::null());
        Far(command.spawn().expect("rbdkit"))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_nbd_plugin_finds_its_server_by_name_also_after_it_came_back() {
    let port = free_port();
    let near = Launch::new(["-v", "nbd", "hostname=localhost", "retry=60"]).arg(format!("port={port}")).start();
    is_confined(&near);
    for _ in 0..2 {
        let _far = Far::at(port);
        assert_eq!(near.client().read(8, 8), Ok(vec![0, 0, 0, 0, 0, 0, 0, 8]));
    }
    is_confined(&near);
}

#[test]
fn the_curl_plugin_finds_names_certificates_cookies_and_runs_its_scripts() {
    let dir = TempDir::new();
    let identity = Identity::create(dir.path(), "localhost").expect("a certificate");
    let rules = Rules {
        require: Some("X-Token: first".into()),
        set_cookie: Some("session=42; Max-Age=1000".into()),
        ..Rules::default()
    };
    let content = Content::Pattern { seed: 1, size: 1 << 20 };
    let source = SlowServer::start(content, rules, Some(&identity)).expect("the slow server");
    let cookies = dir.file("cookies", b"localhost\tFALSE\t/\tFALSE\t0\told\tfriend\n");
    let token = dir.file("token", b"X-Token: first\n");
    let server = Launch::new(["-v", "-r", "curl"])
        .arg(format!("{}/disk", source.url()))
        .path("cainfo", &identity.certificate)
        .path("cookiefile", &cookies)
        .path("cookiejar", &dir.join("jar"))
        .arg(format!("header-script=cat {}", token.display()))
        .start();
    is_confined(&server);
    let mut client = server.client();
    client.read(0, 4096).expect("a read");
    assert!(source.heads()[0].contains("Cookie: old=friend\r\n"), "{:?}", source.heads());
    std::fs::write(&token, "X-Token: second\n").expect("another token");
    source.change(|rules| rules.require = Some("X-Token: second".into()));
    client.read(8192, 4096).expect("a read with the new token");
    client.disconnect();
    let jar = || std::fs::read_to_string(dir.join("jar")).unwrap_or_default();
    server.wait_until("the cookies are written", |_| jar().contains("session\t42"));
    // The server goes away and comes back: the plugin looks its name up again.
    source.pause();
    source.resume().expect("the same port");
    server.client().read(0, 4096).expect("a read");
    is_confined(&server);
    let helpers = helpers(&server);
    assert_eq!(helpers.len(), 1);
    assert!(server.stop().status.success());
    gone(&helpers);
}

/// The processes that start programs for a server.
fn helpers(server: &Server) -> Vec<u32> {
    children(server.pid())
}

/// Waits for the end of these processes. The process that adopts them may take a while to reap
/// them.
fn gone(helpers: &[u32]) {
    let running = |pid: &u32| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    wait::until(&format!("the helpers {helpers:?} end"), || !helpers.iter().any(running));
}

#[test]
fn the_helper_and_its_programs_end_with_a_server_that_is_killed() {
    let near = Launch::new(["-v", "nbd", "arg=-f", "arg=memory", "arg=1M"])
        .path("command", &rbdkit_tests::server::program())
        .start();
    is_confined(&near);
    assert_eq!(near.client().read(0, 1), Ok(vec![0]));
    let helpers = helpers(&near);
    let [helper] = helpers[..] else { panic!("one helper: {helpers:?}") };
    let programs = children(helper);
    assert_eq!(programs.len(), 1);
    assert!(wait::output(Command::new("kill").args(["-KILL", &near.pid().to_string()])).status.success());
    gone(&programs);
    gone(&helpers);
}
