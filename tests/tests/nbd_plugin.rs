//! The nbd plugin in front of other servers: nbdkit, qemu-nbd and rbdkit itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rbdkit_tests::model::{Crowd, Disk, content, sparse};
use rbdkit_tests::raw::{can, cmd};
use rbdkit_tests::server::{children, program};
use rbdkit_tests::{Client, Launch, Server, TempDir, free_port, nbdsh, seed, tool, wait};

/// A multiple of the page size, because qemu-nbd rounds up.
const SIZE: usize = 6 << 20;

/// A qemu-nbd, killed when it is dropped.
struct Qemu(Child);

impl Qemu {
    fn start<'a>(arguments: impl IntoIterator<Item = &'a str>, file: &Path) -> Qemu {
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", "raw", "-e", "16", "--discard=unmap"]).args(arguments).arg(file);
        // It prints a line about every client.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Qemu(command.spawn().expect("qemu-nbd: apt-get install qemu-utils"))
    }

    fn at(socket: &Path, file: &Path) -> Qemu {
        // A predecessor that was killed leaves its socket.
        let _ = std::fs::remove_file(socket);
        Qemu::start(["-k", text(socket), "-x", "", "-D", "a disk"], file)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// The plugin in front of a server on this socket. It waits for a server that is still starting.
fn in_front_of(socket: &Path) -> Launch {
    Launch::new(["nbd", "retry=60"]).path("socket", socket)
}

fn nbdkit(arguments: &[&str]) -> Launch {
    Launch::new(arguments).program(PathBuf::from("nbdkit"))
}

fn check(what: &str, upstream: &Path, shared: bool, first: &[u8], seed: u64) {
    println!("{what}, shared={shared}: RBDKIT_SEED={seed}");
    let server = in_front_of(upstream).arg(format!("shared={shared}")).start();
    let crowd = Crowd::new(seed, 3000);
    let mut disk = Disk::new(first, crowd.stripe);
    let tally = disk.exercise(server.socket(), &crowd);
    println!("{tally:?}");
    let mut client = server.client();
    disk.compare_with("through the plugin", &mut client, false);
    client.flush().expect("flush");
    client.disconnect();
    disk.compare_with("without the plugin", &mut Client::connect(upstream), false);
    assert!(server.stop().status.success());
}

#[test]
fn random_requests_through_the_plugin_agree_with_the_model_and_reach_the_server() {
    let seed = seed();
    let dir = TempDir::new();
    let first = content(seed, SIZE);
    for shared in [false, true] {
        let file = sparse(&dir, "ours.img", &first);
        let ours = Launch::new(["file"]).path("file", &file).start();
        check("rbdkit file", ours.socket(), shared, &first, seed);

        let memory = Server::start(["memory", "6M"]);
        check("rbdkit memory", memory.socket(), shared, &vec![0; SIZE], seed);

        let file = sparse(&dir, "nbdkit.img", &first);
        let theirs = nbdkit(&["file"]).path("file", &file).start();
        check("nbdkit file", theirs.socket(), shared, &first, seed);

        let file = sparse(&dir, "qemu.img", &first);
        let socket = dir.join("qemu.sock");
        let _qemu = Qemu::at(&socket, &file);
        check("qemu-nbd", &socket, shared, &first, seed);
    }
}

#[test]
fn a_chain_of_plugins_copies_every_byte_and_every_extent() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let image = sparse(&dir, "disk.img", &content(seed, SIZE));
    let origin = Launch::new(["file"]).path("file", &image).start();
    let middle = in_front_of(origin.socket()).start();
    let near = in_front_of(middle.socket()).start();
    let map = |server: &Server| tool("nbdinfo", ["--map", &server.uri()]).ok();
    assert_eq!(map(&near), map(&origin));
    assert!(map(&near).lines().count() > 3, "holes and data");
    let copy = dir.join("copy.img");
    tool("nbdcopy", [&near.uri(), text(&copy)]).ok();
    assert!(std::fs::read(&copy).expect("the copy") == std::fs::read(&image).expect("the image"));
    // The other way round: the copy goes into the server.
    let other = dir.file("other.img", &content(seed ^ 1, SIZE));
    tool("nbdcopy", [text(&other), &near.uri()]).ok();
    assert!(std::fs::read(&other).expect("the other image") == std::fs::read(&image).expect("the image"));
}

#[test]
fn a_client_sees_what_the_server_offers() {
    let dir = TempDir::new();
    let image = dir.sparse_file("disk.img", SIZE as u64);
    let socket = dir.join("qemu.sock");
    let _qemu = Qemu::at(&socket, &image);
    let servers = [
        Launch::new(["file"]).path("file", &image).start(),
        Launch::new(["-r", "file"]).path("file", &image).start(),
        Server::start(["memory", "1M"]),
        nbdkit(&["file"]).path("file", &image).start(),
        nbdkit(&["--filter=nozero", "--filter=nocache", "memory", "1M"]).start(),
    ];
    let near = in_front_of(&socket).start();
    // nbdkit has neither a description nor these sizes.
    let info = tool("nbdinfo", ["--json", &near.uri()]).ok();
    assert!(info.contains("\"description\": \"a disk\""), "{info}");
    assert!(info.contains("\"block_size_preferred\": 4096"), "{info}");
    let upstreams = servers.iter().map(Server::socket).chain([&*socket]);
    for upstream in upstreams {
        let near = in_front_of(upstream).start();
        let (far, near) = (Client::connect(upstream), near.client());
        // rbdkit always has DF, and emulates FUA and WRITE_ZEROES where the other server does not
        // have them.
        let extra = can::FUA | can::WRITE_ZEROES | (1 << 7);
        assert_eq!(near.flags & !extra, far.flags & !extra, "{}", upstream.display());
        assert_eq!(near.size, far.size);
        assert_eq!(near.can_extents(), far.can_extents());
    }
}

#[test]
fn requests_longer_than_the_servers_maximum_are_cut() {
    let policy = ["--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=4k", "blocksize-preferred=64k"];
    let far = nbdkit(&[&policy[..], &["blocksize-maximum=1M", "blocksize-error-policy=error"]].concat()).start();
    let near = in_front_of(far.socket()).start();
    let mut client = near.client();
    let bytes = content(5, 5 << 20);
    client.write(1 << 20, &bytes).expect("a long write");
    assert!(client.read(1 << 20, 5 << 20).expect("a long read") == bytes);
    // The client has to keep to the minimum.
    assert_eq!(client.read(512, 512), Err(22));
    let info = tool("nbdinfo", ["--json", &near.uri()]).ok();
    assert!(
        info.contains("\"block_size_minimum\": 4096") && info.contains("\"block_size_preferred\": 65536"),
        "{info}"
    );
}

#[test]
fn each_client_gets_the_export_that_it_asks_for() {
    let dir = TempDir::new();
    let disks = dir.join("disks");
    std::fs::create_dir(&disks).expect("a directory");
    std::fs::write(disks.join("one"), [1; 4096]).expect("a disk");
    std::fs::write(disks.join("two"), [2; 8192]).expect("a disk");
    let far = Launch::new(["file"]).path("dir", &disks).start();
    let near = in_front_of(far.socket()).arg("dynamic-export=true").start();
    let list = tool("nbdinfo", ["--list", "--json", &near.uri()]).ok();
    assert!(list.contains("\"export-name\": \"one\"") && list.contains("\"export-name\": \"two\""), "{list}");
    let mut two = Client::negotiate(near.socket(), "two", true);
    assert_eq!((two.size, two.read(0, 1)), (8192, Ok(vec![2])));
    let mut one = Client::negotiate(near.socket(), "one", true);
    assert_eq!((one.size, one.read(0, 1)), (4096, Ok(vec![1])));
    let script = "
h = nbd.NBD()
assert fails(lambda: h.connect_uri(uri.replace(':///', ':///three'))) == 'ENOENT'
";
    nbdsh(&near.uri(), script).ok();
    // With `export=` every client gets that export.
    let fixed = in_front_of(far.socket()).arg("export=two").start();
    assert_eq!(Client::negotiate(fixed.socket(), "whatever", true).size, 8192);
}

#[test]
fn a_far_server_that_goes_away_is_an_error_and_the_next_client_reaches_its_successor() {
    for shared in [false, true] {
        let dir = TempDir::new();
        let image = dir.file("disk.img", &content(3, SIZE));
        let socket = dir.join("qemu.sock");
        let qemu = Qemu::at(&socket, &image);
        let near = in_front_of(&socket).arg(format!("shared={shared}")).start();
        let mut client = near.client();
        assert!(client.read(0, 4096).is_ok());
        // The server is stopped, so that the requests are in flight when it is killed.
        let stop = |signal: &str| wait::output(Command::new("kill").args([signal, &qemu.0.id().to_string()]));
        assert!(stop("-STOP").status.success());
        for nth in 0..8 {
            client.submit(cmd::READ, 0, nth * 4096, 4096, &[]).expect("a request");
        }
        drop(qemu);
        for _ in 0..8 {
            assert_eq!(client.receive().expect("a reply").result, Err(5));
        }
        assert_eq!(client.read(0, 512), Err(5), "the connection stays broken");
        assert_eq!(client.flush(), Err(5));
        let _qemu = Qemu::at(&socket, &image);
        let mut next = near.client();
        assert!(next.read(0, 4096).is_ok(), "a new client has a new connection");
        assert_eq!(client.read(0, 512), Err(5));
        client.disconnect();
        next.disconnect();
        let outcome = near.stop();
        assert!(outcome.status.success());
        let told = outcome.stderr.lines().filter(|line| line.contains("the server closed the connection")).count();
        let lost = outcome.stderr.lines().filter(|line| line.contains("the connection is lost")).count();
        assert!(told + lost >= 1, "{}", outcome.stderr);
    }
}

#[test]
fn a_shared_connection_that_ended_before_the_first_client_is_made_anew() {
    let dir = TempDir::new();
    let image = dir.sparse_file("disk.img", 1 << 20);
    let socket = dir.join("qemu.sock");
    let qemu = Qemu::at(&socket, &image);
    let near = in_front_of(&socket).arg("shared=true").start();
    drop(qemu);
    let _qemu = Qemu::at(&socket, &image);
    assert_eq!(near.client().read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn a_shared_connection_is_made_at_the_start_and_its_failure_ends_the_program() {
    let dir = TempDir::new();
    let nobody = dir.join("nobody.sock");
    let refused = |launch: Launch| {
        let outcome = launch.try_start().map(|_| ()).expect_err("it should not start");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
        outcome.stderr
    };
    let said = refused(Launch::new(["nbd", "shared=1"]).path("socket", &nobody));
    assert!(said.contains(&format!("nbd: server at {}: cannot connect: ", nobody.display())), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let disks = Launch::new(["file"]).path("dir", dir.path()).start();
    let said = refused(Launch::new(["nbd", "shared=1", "export=x"]).path("socket", disks.socket()));
    assert!(said.contains("it has no export \"x\""), "{said}");
    let said = refused(Launch::new(["nbd", "command=false"]));
    assert!(said.contains("nbd: server 'false': "), "{said}");
    let said = refused(Launch::new(["nbd", "command=/no/such/program"]));
    assert!(said.contains("nbd: server '/no/such/program': "), "{said}");
}

#[test]
fn a_program_is_started_as_the_far_server_and_ends_with_rbdkit() {
    let dir = TempDir::new();
    let raw = dir.file("disk.img", &content(9, SIZE));
    let qcow2 = dir.join("disk.qcow2");
    tool("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]).ok();
    let near = Launch::new(["nbd", "command=qemu-nbd", "arg=-f", "arg=qcow2"]).path("arg", &qcow2).start();
    for _ in 0..2 {
        tool("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&raw), &near.uri()]).ok();
    }
    // The server's helper started the program, because a confined server may start none.
    let [helper] = children(near.pid())[..] else { panic!("one child: {:?}", children(near.pid())) };
    let [qemu] = children(helper)[..] else { panic!("one child: {:?}", children(helper)) };
    let mut client = near.client();
    client.write(0, &[7; 512]).expect("a write");
    client.disconnect();
    let outcome = near.stop();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(!Path::new(&format!("/proc/{qemu}")).exists(), "it has ended");
    // The program wrote everything before it ended.
    let back = dir.join("back.img");
    tool("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", text(&qcow2), text(&back)]).ok();
    assert_eq!(std::fs::read(&back).expect("the image")[..513], [&[7; 512][..], &content(9, SIZE)[512..513]].concat());
}

#[test]
fn tcp_and_inherited_sockets_work_as_well() {
    let dir = TempDir::new();
    let image = dir.file("disk.img", &content(4, SIZE));
    let port = free_port().to_string();
    let _qemu = Qemu::start(["-b", "127.0.0.1", "-p", &port, "-x", "a b"], &image);
    let by_name =
        Launch::new(["nbd", "hostname=localhost", "export=a b", "retry=60"]).arg(format!("port={port}")).start();
    let by_uri = Launch::new(["nbd".to_owned(), format!("nbd://127.0.0.1:{port}/a%20b")]).start();
    // The shell connects and passes the socket on.
    let wrapper = dir.file(
        "wrapper",
        format!("#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\nexec '{}' \"$@\"\n", program().display()).as_bytes(),
    );
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("an executable");
    tool("nbdinfo", ["--size", &by_name.uri()]).ok();
    let inherited = Launch::new(["nbd", "socket-fd=3", "export=a b"]).program(wrapper).start();
    for near in [&by_name, &by_uri, &inherited] {
        for _ in 0..2 {
            tool("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&image), &near.uri()]).ok();
        }
    }
}

#[test]
fn a_server_with_large_blocks_takes_any_request_through_blocksize() {
    let upstream = Server::start([
        "--filter=nofilter",
        "eval",
        "get_size=echo 1M",
        "block_size=echo 4096 4096 1M",
        "pread=head -c $3 /dev/zero | tr '\\0' x",
        "pwrite=cat >/dev/null",
    ]);
    let requests = r#"
h = nbd.NBD()
h.set_request_block_size(False)
h.connect_uri(uri)
print(fails(lambda: h.pread(512, 512)), fails(lambda: h.pwrite(bytes(512), 512)), fails(lambda: h.zero(100, 1)))
print(fails(lambda: h.pread(4096, 4096)))
"#;
    // The plugin says itself what its server cannot do.
    let plain = Launch::new(["nbd"]).path("socket", upstream.socket()).start();
    assert_eq!(nbdsh(&plain.uri(), requests).ok(), "EINVAL EINVAL EINVAL\nsuccess\n");
    plain.wait_for_log("the other server only takes requests that are aligned to 4096 bytes");
    let aligned = Launch::new(["--filter=blocksize", "nbd"]).path("socket", upstream.socket()).start();
    assert_eq!(nbdsh(&aligned.uri(), requests).ok(), "success success success\nsuccess\n");
}
