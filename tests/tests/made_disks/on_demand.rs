//! Disks that a command makes when a client connects: tmpdisk and ondemand.

use std::path::Path;
use std::thread;

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool, wait};
use rustix::process::Signal;

use crate::{copy, copy_of, export, leftovers, nbdkit, text};

#[test]
fn every_client_of_tmpdisk_has_a_fresh_file_system_of_its_own() {
    let server = Server::start(["tmpdisk", "2M", "label=it's mine"]);
    let dir = TempDir::new();
    let disk = dir.file("disk", &copy(&server));
    tool("/sbin/e2fsck", ["-f", "-n", text(&disk)]).ok();
    let about = tool("/sbin/dumpe2fs", ["-h", text(&disk)]).ok();
    assert!(about.contains("it's mine"), "{about}");
    let script = "
def client():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h
one, two = client(), client()
one.pwrite(b'mine', 0, nbd.CMD_FLAG_FUA)
one.zero(4096, 8192)
one.trim(4096, 16384)
one.flush()
print(bytes(one.pread(4, 0)), bytes(two.pread(4, 0)), one.can_multi_conn(), one.can_fua())
";
    assert_eq!(nbdsh(&server.uri(), script).ok(), "b'mine' b'\\x00\\x00\\x00\\x00' False True\n");
    assert_eq!(leftovers(server.dir()), Vec::<String>::new());
}

#[test]
fn a_command_gets_its_variables_as_they_were_given() {
    let hostile = "a'b \"$(id)\" `id` \\ *;&|";
    let server = Launch::new(["tmpdisk", "0", r#"command=printf '%s' "$os $size" >"$disk""#])
        .arg(format!("os={hostile}"))
        .start();
    assert_eq!(copy(&server), format!("{hostile} 0").as_bytes());
    // What it prints does not reach a client on standard output, and its size is the disk's.
    let server = Server::start(["tmpdisk", "1G", r#"command=echo noise; truncate -s 12345 "$disk""#]);
    assert_eq!(copy(&server), [0; 12345]);
}

#[test]
fn a_command_that_fails_is_explained_in_the_log() {
    let server = Server::start(["tmpdisk", "1M", "type=nosuchfs"]);
    tool("nbdinfo", [server.uri()]).fails();
    server.wait_for_log("tmpdisk: the command exited with code ");
    assert_eq!(leftovers(server.dir()), Vec::<String>::new());
    // The server goes on.
    tool("nbdinfo", [server.uri()]).fails();
}

/// A command that says that it runs, and then does not end.
fn endless(pid: &Path) -> String {
    format!(r#"command=truncate -s 4096 "$disk"; trap '' TERM; echo $$ >{}; while :; do sleep 1; done"#, pid.display())
}

/// Runs a client that waits for its disk while `meanwhile` runs, and returns the number of the
/// process that makes it.
fn with_waiting_client(server: &Server, pid: &Path, meanwhile: impl FnOnce(&mut std::process::Child)) -> u32 {
    let mut client = std::process::Command::new("nbdinfo")
        .arg(server.uri())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("nbdinfo");
    let number = || std::fs::read_to_string(pid).ok().and_then(|text| text.trim().parse().ok());
    wait::until("the command runs", || number().is_some());
    meanwhile(&mut client);
    let _ = client.kill();
    client.wait().expect("nbdinfo");
    number().expect("the command's process")
}

fn wait_for_end_of(process: u32) {
    wait::until("the command has ended", || !Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn a_command_ends_with_its_client() {
    let dir = TempDir::new();
    let pid = dir.join("pid");
    let server = Launch::new(["tmpdisk", "1M"]).arg(endless(&pid)).start();
    let process = with_waiting_client(&server, &pid, |client| client.kill().expect("nbdinfo"));
    wait_for_end_of(process);
    wait::until("its directory is removed", || leftovers(server.dir()).is_empty());
}

#[test]
fn nothing_is_left_if_the_server_is_killed() {
    let dir = TempDir::new();
    let pid = dir.join("pid");
    let server = Launch::new(["tmpdisk", "1M"]).arg(endless(&pid)).start();
    let process = with_waiting_client(&server, &pid, |_| server.signal(Signal::KILL));
    server.wait_for_end();
    wait_for_end_of(process);
    wait::until("its directory is removed", || leftovers(server.dir()).is_empty());
}

#[test]
fn a_command_that_hangs_does_not_hold_the_end() {
    let dir = TempDir::new();
    let pid = dir.join("pid");
    let server = Launch::new(["tmpdisk", "1M"]).arg(endless(&pid)).start();
    let process = with_waiting_client(&server, &pid, |_| server.signal(Signal::TERM));
    assert!(server.wait().status.success());
    wait_for_end_of(process);
}

#[test]
fn ondemand_makes_a_disk_for_each_name_and_keeps_it() {
    let dir = TempDir::new();
    let exports = dir.join("exports");
    std::fs::create_dir(&exports).expect("a directory");
    let start = || Launch::new(["ondemand", "1M"]).path("dir", &exports).start();
    let script = "
h = nbd.NBD()
h.connect_uri(uri)
print(bytes(h.pread(4, 0)))
h.pwrite(b'kept', 0)
h.flush()
h.shutdown()
";
    let zeroes = "b'\\x00\\x00\\x00\\x00'\n";
    let server = start();
    for name in ["a", "it%27s%20%24HOME", ""] {
        assert_eq!(nbdsh(&export(&server, name), script).ok(), zeroes);
    }
    drop(server);
    let server = start();
    assert_eq!(nbdsh(&export(&server, "a"), script).ok(), "b'kept'\n");
    assert_eq!(nbdsh(&server.uri(), script).ok(), "b'kept'\n");
    std::fs::write(exports.join("hidden.file"), "").expect("a file");
    let list = tool("nbdinfo", ["--list", "--json", &server.uri()]).ok();
    for (name, listed) in [("\"a\"", true), ("\"it's $HOME\"", true), ("\"default\"", true), ("hidden", false)] {
        assert_eq!(list.contains(&format!("\"export-name\": {name}")), listed, "{list}");
    }
    for name in ["a.b", "..", "a%2Fb", "%2Fetc%2Fpasswd", "a%3Ab", &"x".repeat(256)] {
        tool("nbdinfo", [export(&server, name)]).fails();
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&exports).expect("a directory").map(|one| one.expect("an entry")).collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let names: Vec<_> = names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["a", "default", "hidden.file", "it's $HOME"]);
    tool("/sbin/e2fsck", ["-f", "-n", text(&exports.join("it's $HOME"))]).ok();
}

#[test]
fn a_disk_of_ondemand_is_locked_also_for_nbdkit() {
    let dir = TempDir::new();
    let arguments = ["ondemand", "1M", &format!("dir={}", text(dir.path())), r#"command=truncate -s 1M "$disk""#];
    let (ours, theirs) = (Server::start(arguments), nbdkit(&arguments).start());
    for (holder, other) in [(&ours, &ours), (&ours, &theirs), (&theirs, &ours)] {
        let script = format!(
            "
def client(uri):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h
one = client({:?})
other = {:?}
print(fails(lambda: client(other)) != 'success')
one.shutdown()
del one
",
            export(holder, "disk"),
            export(other, "disk"),
        );
        assert_eq!(nbdsh("", &script).ok(), "True\n");
    }
    ours.wait_for_log("ondemand: disk: filesystem is locked by another client");
}

#[test]
fn clients_of_ondemand_may_wait_for_a_locked_disk() {
    let dir = TempDir::new();
    let server = Launch::new(["ondemand", "1M", "wait=true", r#"command=truncate -s 1M "$disk""#])
        .path("dir", dir.path())
        .start();
    let uri = export(&server, "disk");
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| copy_of_in_its_own_file(&uri))).collect();
        for client in clients {
            assert_eq!(client.join().expect("a client"), 1 << 20);
        }
    });
}

fn copy_of_in_its_own_file(uri: &str) -> usize {
    let dir = TempDir::new();
    let copy = dir.join("copy");
    tool("nbdcopy", ["--connections=1", uri, text(&copy)]).ok();
    std::fs::read(copy).expect("the copy").len()
}

#[test]
fn a_disk_that_could_not_be_made_is_not_there() {
    let dir = TempDir::new();
    let fails = r#"command=echo half >"$disk"; [ -e "$go" ] && truncate -s 4096 "$disk""#;
    let (exports, go) = (dir.join("exports"), dir.join("go"));
    std::fs::create_dir(&exports).expect("a directory");
    let server = Launch::new(["ondemand", "1M", fails]).path("dir", &exports).path("go", &go).start();
    tool("nbdinfo", [export(&server, "x")]).fails();
    assert_eq!(std::fs::read_dir(&exports).expect("a directory").count(), 0);
    std::fs::write(go, "").expect("a file");
    assert_eq!(copy_of(&server, &export(&server, "x")).len(), 4096);
}
