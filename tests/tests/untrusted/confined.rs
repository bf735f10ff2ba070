//! The second wall: the process that serves can do nothing but serve.

use rbdkit_tests::{Launch, Server, TempDir, nbdsh};

/// Fields of `/proc/PID/task/*/status` of every thread.
fn of_threads(server: &Server, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the server's threads");
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    status
        .filter_map(|status| Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned()))
        .collect()
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
    server.wait_for_log("confined: no new privileges; ");
    assert!(of_threads(&server, "NoNewPrivs:").iter().all(|value| value == "1"));
    assert!(of_threads(&server, "Seccomp:").iter().all(|value| value == "2"));
    let threads = of_threads(&server, "Seccomp:").len();
    assert!(threads < 40, "{threads} threads");
    client.disconnect();
    assert!(server.stop().status.success());
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
    // It came later.
    std::fs::write(dir.join("served/c"), [9; 4096]).expect("a file");
    assert_eq!(server_read(&server, "c"), "9");
    // The same server with its directory turned into a way out: the plugin refuses, and if it did not, the kernel would.
    std::os::unix::fs::symlink(dir.join("other/b"), dir.join("served/link")).expect("a link");
    assert_ne!(server_read(&server, "link"), "8");
}

fn server_read(server: &Server, export: &str) -> String {
    let uri = format!("nbd+unix:///{export}?socket={}", server.socket().display());
    let script = "h = nbd.NBD()\ntry:\n    h.connect_uri(uri)\n    print(h.pread(1, 0)[0])\nexcept nbd.Error:\n    print('refused')";
    nbdsh(&uri, script).ok().trim().to_owned()
}

#[test]
fn a_command_and_a_script_are_not_confined() {
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(rbdkit_tests::server::program()).args(arguments).output().expect("rbdkit");
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
