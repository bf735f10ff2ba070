//! The command lines of programs that start nbdkit, as their public sources have them: virt-v2v and
//! KubeVirt's containerized-data-importer (CDI). The program is called `nbdkit`, as they call it.
//! `ssh_plugin.rs` has virt-v2v's command line for ssh.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rbdkit_slow_server::{Content, Rules, SlowServer};
use rbdkit_tests::server::program;
use rbdkit_tests::{Finished, Launch, TempDir, nbdsh, tool, wait};

const SEED: u64 = 7;
const SIZE: u64 = 4 << 20;

/// A directory in which the program is called `nbdkit`.
fn installed() -> (TempDir, PathBuf) {
    let dir = TempDir::new();
    let nbdkit = dir.join("nbdkit");
    std::os::unix::fs::symlink(program(), &nbdkit).expect("a link");
    (dir, nbdkit)
}

/// A shell command in which `nbdkit` is the program.
fn shell(dir: &TempDir, command: &str) -> Finished {
    tool("/bin/sh", ["-c", &format!("PATH={}:$PATH; {command}", dir.path().display())])
}

fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let mut expected = vec![0; length];
    Content::Pattern { seed: SEED, size: SIZE }.read(&mut expected, offset).expect("the pattern");
    expected
}

#[test]
fn what_virt_v2v_probes_is_there() {
    let (dir, _) = installed();
    for probe in [
        "nbdkit --version >/dev/null 2>&1",
        "nbdkit --long-options | grep -sq '^--name$'",
        "nbdkit --short-options | grep -sq '^-D$'",
        "nbdkit curl --version >/dev/null 2>&1",
        "nbdkit file --version >/dev/null 2>&1",
        "nbdkit nbd --version >/dev/null 2>&1",
        "nbdkit ssh --version >/dev/null 2>&1",
        "nbdkit null --filter=blocksize --version >/dev/null 2>&1",
        "nbdkit null --filter=count --version >/dev/null 2>&1",
        "nbdkit null --filter=cow --version >/dev/null 2>&1",
        "nbdkit null --filter=multi-conn --version >/dev/null 2>&1",
        "nbdkit null --filter=retry --version >/dev/null 2>&1",
        "nbdkit null --filter=cow --help | grep -sq 'cow-on-read=.*/PATH'",
        "nbdkit null --filter=cow --help | grep -sq cow-block-size",
        // One of both, and the first is preferred.
        "nbdkit file --help | grep -sq -e reduce-memory-pressure= -e cache=",
    ] {
        assert_eq!(shell(&dir, probe).code, 0, "{probe}");
    }
    assert_ne!(shell(&dir, "nbdkit no-such-plugin --version >/dev/null 2>&1").code, 0);
    assert_ne!(shell(&dir, "nbdkit null --filter=no-such-filter --version >/dev/null 2>&1").code, 0);
    // It wants at least 1.45.11 for VDDK, and parses this key.
    let config = shell(&dir, "nbdkit --dump-config").ok();
    let version = config.lines().find_map(|line| line.strip_prefix("version=")).expect("a version");
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().expect("a number")).collect();
    let [major, minor, release] = numbers[..] else { panic!("{version}") };
    assert!((major, minor, release) >= (1, 45, 11), "{version}");
    assert!(shell(&dir, "nbdkit --version").ok().starts_with(&format!("nbdkit {version} (")));
}

#[test]
fn virt_v2v_reads_a_disk_over_https_as_it_does_from_vcenter() {
    let (dir, nbdkit) = installed();
    let rules = Rules { require: Some("Cookie: session=1".into()), ..Rules::default() };
    let source = SlowServer::start(Content::Pattern { seed: SEED, size: SIZE }, rules, None).expect("the slow server");
    let mut launch = Launch::new(["--threads", "16", "-D", "nbdkit.backend.datapath=0", "--verbose"])
        .program(nbdkit)
        .socket_options(&["--name", "in0", "--exit-with-parent", "--foreground", "--unix"], "--pidfile");
    for filter in ["cow", "count", "retry"] {
        launch = launch.args(["--filter", filter]);
    }
    let server = launch
        .env("LANG", "C")
        .arg("curl")
        .arg(format!("url={}/disk.img", source.url()))
        .args(["timeout=2000", "cookie-script=echo session=1", "cookie-script-renew=1500", "sslverify=false"])
        .path("cow-on-read", &dir.join("convert"))
        .start();
    let mut client = server.client();
    assert!(client.read(0, 65536).expect("the first bytes") == pattern(0, 65536));
    // The conversion writes into the overlay.
    client.write(4096, &[1; 512]).expect("a write");
    assert!(client.read(4096, 512).expect("a read") == [1; 512]);
    // From now on what is read stays in the overlay.
    std::fs::write(dir.join("convert"), "").expect("a file");
    assert!(client.read(1 << 20, 65536).expect("a read") == pattern(1 << 20, 65536));
    drop(client);
    server.wait_for_log("nbdkit[in0]: curl[1]: debug: closed");
    let outcome = server.stop();
    assert!(outcome.status.success());
    let text = outcome.stderr;
    assert!(text.lines().all(|line| line.starts_with("nbdkit[in0]: ")), "{text}");
    assert!(text.contains("count bytes: read ") && !text.contains("pread offset="), "{text}");
}

#[test]
fn virt_v2v_serves_local_disks_and_other_servers() {
    let (dir, nbdkit) = installed();
    let disk = dir.file("disk0.img", &pattern(0, 1 << 20));
    let options = ["--threads", "16", "-D", "nbdkit.backend.datapath=0", "--readonly"];
    let v2v = || {
        Launch::new(options)
            .program(nbdkit.clone())
            .socket_options(&["--name", "in", "--exit-with-parent", "--foreground", "--unix"], "--pidfile")
            .args(["--filter", "cow"])
    };
    let local = v2v().arg("file").path("file", &disk).arg("cache=none").start();
    let mut client = local.client();
    assert!(client.read(0, 4096).expect("the first bytes") == pattern(0, 4096));
    let proxy = v2v().args(["nbd", &format!("uri={}", local.uri())]).start();
    let mut client = proxy.client();
    assert!(client.read(0, 4096).expect("the first bytes") == pattern(0, 4096));
}

#[test]
fn virt_v2v_writes_its_output() {
    let (dir, nbdkit) = installed();
    let source = dir.file("converted.img", &pattern(0, 1 << 20));
    let options = ["--threads", "16", "-D", "nbdkit.backend.datapath=0"];
    let v2v = || {
        Launch::new(options)
            .program(nbdkit.clone())
            .socket_options(&["--name", "out", "--exit-with-parent", "--foreground", "--unix"], "--pidfile")
    };
    let copy = |uri: &str| tool("nbdcopy", [source.to_str().expect("UTF-8"), uri]).ok();
    // The disks exist when the server starts, and it finds them by their names.
    std::fs::create_dir(dir.join("storage")).expect("a directory");
    let disk = dir.sparse_file("storage/guest-sda", 1 << 20);
    let storage = v2v().args(["--filter", "count", "file"]).path("dir", &dir.join("storage")).arg("cache=none").start();
    copy(&format!("nbd+unix:///guest-sda?socket={}", storage.socket().display()));
    assert!(std::fs::read(&disk).expect("the disk") == pattern(0, 1 << 20));
    let one = dir.sparse_file("one.img", 1 << 20);
    copy(&v2v().arg("file").path("file", &one).arg("cache=none").start().uri());
    assert!(std::fs::read(&one).expect("the disk") == pattern(0, 1 << 20));
    let null = v2v().args(["null", "size=7E"]).start();
    assert_eq!(tool("nbdinfo", ["--size", &null.uri()]).ok(), format!("{}\n", 7_u64 << 60));
    copy(&null.uri());
}

#[test]
fn cdi_reads_a_disk_over_http() {
    let (dir, nbdkit) = installed();
    // user:password in base64
    let rules = Rules { require: Some("Authorization: Basic dXNlcjpwYXNzd29yZA==".into()), ..Rules::default() };
    let source = SlowServer::start(Content::Pattern { seed: SEED, size: SIZE }, rules, None).expect("the slow server");
    let (socket, pid_file) = (dir.join("nbdkit.sock"), dir.join("nbdkit.pid"));
    // The importer passes the password on as descriptor 3, and reads both standard streams.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec \"$@\" 3<&0 </dev/null 2>&1", "sh"]).arg(&nbdkit);
    command
        .args(["--foreground", "--readonly", "--exit-with-parent", "-U"])
        .arg(&socket)
        .arg("--pidfile")
        .arg(&pid_file);
    command.args(["--filter=readahead", "--filter=retry", "-r", "curl"]);
    command.args(["header=User-Agent: cdi-nbdkit-importer", "user=user", "password=-3", "header=X-Own: 1"]);
    command.args(["retry-exponential=no", "header=X-Secret: 2", &format!("url={}/disk.img", source.url())]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    let mut password = child.stdin.take().expect("a pipe");
    password.write_all(b"password").expect("the password");
    drop(password);
    let log = wait::Lines::of(child.stdout.take().expect("a pipe"));
    wait::until("the pid file", || pid_file.exists());
    // The importer's own form of the URI.
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let script = "
h.connect_uri(uri)
print(h.get_size(), bytes(h.pread(16, 1 << 20)).hex(), h.is_read_only())
";
    let hex: String = pattern(1 << 20, 16).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(nbdsh(&uri, script).ok(), format!("{SIZE} {hex} True\n"));
    let info = tool("qemu-img", ["info", "--output=json", &uri]).ok();
    assert!(info.contains(&format!("\"virtual-size\": {SIZE}")), "{info}");
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    assert!(child.wait().expect("the end").success());
    // curl cannot cache, so the readahead filter has nothing to do, as in nbdkit. Nothing else is
    // said.
    let said: Vec<String> = std::iter::from_fn(|| log.next("the end")).collect();
    assert!(said.iter().all(|line| line.starts_with("nbdkit: warning: readahead: ")), "{said:?}");
}

#[test]
fn cdi_finds_its_lines_in_the_log() {
    let (_dir, nbdkit) = installed();
    // It looks for lines that begin with nbdkit: PLUGIN[N]: debug: and nbdkit: debug:
    let server = Launch::new(["--verbose", "-D", "nbdkit.backend.datapath=0", "memory", "1M"]).program(nbdkit).start();
    for number in 1..=2 {
        drop(server.client());
        server.wait_for_log(&format!("\nnbdkit: memory[{number}]: debug: closed\n"));
    }
    assert!(server.stop().stderr.starts_with("nbdkit: debug: nbdkit 1.46."));
}
