//! Plugins that crash, end, hang and lie.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rbdkit_tests::server::descendants;
use rbdkit_tests::{nbdsh, tool, wait};

use super::compiled::Testing;

/// Whether the disk can be read, as the name of the error.
fn read(uri: &str, offset: u32) -> String {
    let script = format!(
        "
def read():
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pread(512, {offset})
    h.shutdown()
print(fails(read))
"
    );
    nbdsh(uri, &script).ok().trim().into()
}

#[test]
fn a_crash_before_the_server_listens_ends_it_with_one_line() {
    for phase in ["config", "config_complete", "thread_model", "get_ready", "after_fork"] {
        let testing = Testing::new(&[]);
        for (how, end) in [("crash", "was killed by signal 11 (segmentation fault)"), ("exit", "ended with status 7")] {
            let outcome = testing.launch(&[&format!("{how}={phase}")]).try_start().err().expect("no server");
            assert_eq!(outcome.status.code(), Some(1), "{phase}");
            assert_eq!(outcome.stderr, format!("rbdkit: error: testing: the plugin's process {end}\n"), "{phase}");
        }
        let outcome = testing.launch(&[&format!("fail={phase}")]).try_start().err().expect("no server");
        assert_eq!(outcome.stderr, format!("rbdkit: error: {phase} fails: 100%\n"));
    }
}

#[test]
fn after_a_crash_in_any_phase_the_next_connection_starts_the_process_anew() {
    let phases = ["preconnect", "default_export", "open", "get_size", "can_write", "pread", "close"];
    for (phase, how) in phases.iter().flat_map(|phase| ["crash", "exit"].map(|how| (phase, how))) {
        let testing = Testing::new(&[]);
        let server = testing.launch(&[&format!("{how}={phase}"), &testing.once()]).start();
        let first = read(&server.uri(), 65536);
        if *phase != "close" {
            assert_ne!(first, "success", "{phase}");
        }
        server.wait_for_log("the next connection starts it anew");
        assert_eq!(read(&server.uri(), 65536), "success", "{phase} {how}");
        assert_eq!(testing.count("get_ready"), 2, "{phase} {how}");
        let log = server.stderr();
        let lines = log.lines().filter(|line| line.contains("starts it anew")).count();
        let end = if how == "crash" { "was killed by signal 11 (segmentation fault)" } else { "ended with status 7" };
        assert!(lines == 1 && log.contains(end), "{phase} {how}:\n{log}");
        let outcome = server.stop();
        assert!(outcome.status.success(), "{phase}");
        assert_eq!(testing.count("unload"), 1, "{phase}");
    }
}

#[test]
fn a_crash_fails_the_requests_under_way_and_others_get_an_error_until_they_connect_again() {
    let testing = Testing::new(&[]);
    let server = testing.launch(&["crash=pwrite", &testing.once()]).start();
    let script = "
h, g = nbd.NBD(), nbd.NBD()
h.connect_uri(uri)
g.connect_uri(uri)
print(fails(lambda: h.pwrite(b'x' * 512, 65536)), fails(lambda: h.pread(512, 0)), fails(lambda: g.pread(512, 0)))
n = nbd.NBD()
n.connect_uri(uri)
n.pwrite(b'x' * 512, 65536)
print(fails(lambda: h.pread(512, 0)))
for each in [h, g, n]: each.shutdown()
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "EIO EIO EIO\nEIO\n");
    assert!(server.stop().status.success());
}

/// A client that runs a script of nbdsh, and is killed when it is dropped.
struct Hanging(std::process::Child);

impl Hanging {
    fn start(uri: &str, script: &str) -> Hanging {
        let connect = format!("h.add_meta_context('base:allocation')\nh.connect_uri({uri:?})");
        let mut nbdsh = Command::new("nbdsh");
        nbdsh.env("PATH", "/usr/bin:/bin").args(["-c", &connect, "-c", script]);
        Hanging(nbdsh.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nbdsh"))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_request_that_hangs_holds_neither_other_requests_nor_the_end() {
    let requests = [
        ("pread", "h.aio_pread(nbd.Buffer(512), 65536)\nh.pread(512, 512)\nh.poll(-1)"),
        ("extents", "h.aio_block_status(512, 0, lambda *all: 0)\nh.pread(512, 512)\nh.poll(-1)"),
        ("open", ""),
        ("close", "h.shutdown()"),
    ];
    for (function, script) in requests {
        let testing = Testing::new(&[]);
        let server = testing.launch(&[&format!("hang={function}"), &testing.once()]).start();
        let _client = Hanging::start(&server.uri(), script);
        let hanging = format!("hangs in {function}");
        server.wait_until("the request hangs", |_| testing.count(&hanging) == 1);
        if script.contains("pread(512, 512)") {
            server.wait_until("the same connection is served", |_| testing.count("pread 512 512 0") == 1);
        }
        assert_eq!(read(&server.uri(), 0), "success", "{function}");
        let began = Instant::now();
        server.stop();
        // Without a plugin that hangs it takes a second at most.
        assert!(began.elapsed() < Duration::from_secs(25), "{function}: {:?}", began.elapsed());
    }
}

#[test]
fn what_a_plugin_says_of_sizes_extents_and_exports_is_checked() {
    let info = |uri: &str| tool("nbdinfo", [uri]);
    for (lie, answer) in [("size", "impossible size -9223372036854775808"), ("extents-none", "at least one extent")] {
        let testing = Testing::new(&[]);
        let server = testing.launch(&[&format!("lie={lie}")]).start();
        let said = if lie == "size" { info(&server.uri()) } else { tool("nbdinfo", ["--map", &server.uri()]) };
        said.fails();
        server.wait_for_log(answer);
        assert!(server.stop().status.success());
    }
    // Allowed, though odd: the largest size, and a block size that no export can have.
    for lie in ["large", "block-size", "fua", "description"] {
        let testing = Testing::new(&[]);
        let server = testing.launch(&[&format!("lie={lie}")]).start();
        info(&server.uri()).ok();
        assert!(server.stop().status.success());
    }
    let testing = Testing::new(&[]);
    let server = testing.launch(&["lie=extents-back"]).start();
    tool("nbdinfo", ["--map", &server.uri()]).fails();
    server.wait_for_log("must be added in ascending order");
    let server = testing.launch(&["lie=extents-many"]).start();
    let many = tool("nbdinfo", ["--map", &server.uri()]).ok();
    assert!(many.lines().count() > 1000, "{many}");
    let server = testing.launch(&["lie=extents-flags"]).start();
    tool("nbdinfo", ["--map", &server.uri()]).ok();
    let server = testing.launch(&["lie=exports"]).start();
    tool("nbdinfo", ["--list", &server.uri()]).fails();
    server.wait_for_log("too many exports");
    let server = testing.launch(&["lie=export-names"]).start();
    tool("nbdinfo", ["--list", &server.uri()]).fails();
    assert!(server.stop().status.success());
}

#[test]
fn the_plugins_thread_model_holds() {
    let clients = "
handles = [nbd.NBD() for _ in range(3)]
for h in handles: h.connect_uri(uri)
requests = [(h, h.aio_pread(nbd.Buffer(512), 512 * n)) for n in range(40) for h in handles]
for h, request in requests:
    while not h.aio_command_completed(request): h.poll(-1)
for h in handles: h.shutdown()
";
    // Serialized by the plugin's table, and by its function.
    for (definition, parameter) in [("-DTHREAD_MODEL=1", "model=3"), ("-DTHREAD_MODEL=3", "model=1")] {
        let testing = Testing::new(&[definition]);
        let server = testing.launch(&[parameter, "lie=slow"]).start();
        nbdsh(&server.uri(), clients).ok();
        assert_eq!(testing.count("two at once"), 0, "{definition}");
        assert!(server.stop().status.success());
    }
    // With one request at a time for a connection, two connections run at once.
    for (model, offsets, count) in [("model=2", "[65536]", 2), ("model=3", "[65536, 66048]", 1)] {
        let testing = Testing::new(&[]);
        let server = testing.launch(&[model, "lie=pairs"]).start();
        let script = format!(
            "
handles = [nbd.NBD() for _ in range({count})]
for h in handles: h.connect_uri(uri)
requests = [(h, h.aio_pread(nbd.Buffer(512), at)) for h in handles for at in {offsets}]
for h, request in requests:
    while not h.aio_command_completed(request): h.poll(-1)
"
        );
        nbdsh(&server.uri(), &script).ok();
        assert!(testing.count("two at once") > 0);
        assert!(server.stop().status.success());
    }
}

#[test]
fn a_process_that_is_left_behind_by_fork_does_not_hide_the_end_of_its_parent() {
    let testing = Testing::new(&[]);
    let server = testing.launch(&["lie=fork", "crash=pread", &testing.once(), "leak=1"]).start();
    assert_eq!(read(&server.uri(), 65536), "EIO");
    assert_eq!(read(&server.uri(), 65536), "success");
    let pids = descendants(server.pid());
    assert!(server.stop().status.success());
    let is_gone = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    wait::until("all processes have ended", || pids.iter().all(is_gone));
}

#[test]
fn the_plugins_process_ends_with_a_server_that_is_killed() {
    let testing = Testing::new(&[]);
    let server = testing.launch(&["hang=pread"]).start();
    let pids = descendants(server.pid());
    assert!(!pids.is_empty());
    server.kill();
    let is_gone = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    };
    wait::until("the plugin's process has ended", || pids.iter().all(is_gone));
}
