//! The ssh plugin in front of a real sshd. Each test starts its own on loopback.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rbdkit_tests::model::{Crowd, Disk, content, sparse};
use rbdkit_tests::raw::{can, cmd};
use rbdkit_tests::wait::{self, Lines};
use rbdkit_tests::{Launch, Server, TempDir, free_port, nbdsh, seed, tool};

const SIZE: usize = (3 << 20) + 1234;

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn keygen(arguments: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    let output = wait::output(command.arg("-q").args(arguments));
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An sshd with its own keys. Dropping it kills it and all its sessions.
struct Sshd {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Sshd {
    fn start() -> Sshd {
        let dir = TempDir::new();
        for (kind, name) in
            [("ed25519", "host_ed25519"), ("ecdsa", "host_ecdsa"), ("ed25519", "id"), ("ed25519", "other")]
        {
            keygen(&["-t", kind, "-N", "", "-f", text(&dir.join(name))]);
        }
        std::fs::copy(dir.join("id.pub"), dir.join("authorized_keys")).expect("a copy");
        let at = |name: &str| dir.join(name).display().to_string();
        let config = [
            "ListenAddress 127.0.0.1".to_owned(),
            format!("HostKey {}", at("host_ed25519")),
            format!("HostKey {}", at("host_ecdsa")),
            format!("AuthorizedKeysFile {}", at("authorized_keys")),
            "PidFile none\nStrictModes no\nUsePAM no\nKbdInteractiveAuthentication no\nMaxStartups 100".to_owned(),
            "Subsystem sftp internal-sftp\n".to_owned(),
        ];
        let config = dir.file("sshd_config", config.join("\n").as_bytes());
        // When started as root, sshd needs this directory, which Debian's service makes.
        let _ = std::fs::create_dir("/run/sshd");
        // sshd cannot choose a port by itself, and another program may take the free port first.
        let (child, port) =
            std::iter::repeat_with(|| Sshd::try_start(&config)).take(20).flatten().next().expect("sshd");
        let sshd = Sshd { child, port, dir };
        sshd.know("known", &["host_ed25519"]);
        sshd
    }

    /// Starts sshd at a free port. `None` if it ends instead of listening.
    fn try_start(config: &Path) -> Option<(Child, u16)> {
        let port = free_port();
        let mut command = Command::new("/usr/sbin/sshd");
        command
            .args(["-D", "-e", "-p", &port.to_string(), "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("sshd: apt-get install openssh-server");
        let log = Lines::of(child.stderr.take().expect("a pipe"));
        while let Some(line) = log.next("sshd listens or ends") {
            if line.contains("Server listening on ") {
                return Some((child, port));
            }
        }
        child.wait().expect("sshd's end");
        None
    }

    /// Makes a known-hosts file with these of the server's keys.
    fn know(&self, name: &str, keys: &[&str]) {
        let lines = keys.iter().map(|key| {
            let public = std::fs::read_to_string(self.dir.join(&format!("{key}.pub"))).expect("a public key");
            let words: Vec<&str> = public.split_whitespace().collect();
            format!("[127.0.0.1]:{} {} {}\n", self.port, words[0], words[1])
        });
        self.dir.file(name, lines.collect::<String>().as_bytes());
    }

    /// The plugin without a key for the user.
    fn stranger(&self, known: &str, path: &Path) -> Launch {
        Launch::new(["ssh", "host=127.0.0.1", "config="])
            .env("SSH_AUTH_SOCK", "/no/such/agent")
            .arg(format!("port={}", self.port))
            .path("known-hosts", &self.dir.join(known))
            .path("path", path)
    }

    fn launch(&self, known: &str, path: &Path) -> Launch {
        self.stranger(known, path).path("identity", &self.dir.join("id"))
    }

    fn serve(&self, path: &Path) -> Server {
        self.launch("known", path).start()
    }

    /// The processes below this one, at any depth.
    fn sessions(pid: u32) -> Vec<u32> {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        children.iter().flat_map(|&pid| [vec![pid], Sshd::sessions(pid)].concat()).collect()
    }

    fn signal_sessions(&self, signal: &str) {
        let pids: Vec<String> = Sshd::sessions(self.child.id()).iter().map(u32::to_string).collect();
        if !pids.is_empty() {
            // A process may have ended by itself.
            wait::output(Command::new("kill").arg(signal).args(pids));
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.signal_sessions("-KILL");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The line in the log with which the first client is refused.
fn refused(launch: Launch) -> String {
    let server = launch.start();
    let script = "
h = nbd.NBD()
print(fails(lambda: h.connect_uri(uri)))
";
    assert_ne!(nbdsh(&server.uri(), script).ok().trim(), "success");
    let outcome = server.stop();
    assert!(outcome.status.success());
    let said: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("ssh: ")).collect();
    assert!(!said.is_empty() && said.iter().all(|line| *line == said[0]), "{}", outcome.stderr);
    said[0].to_owned()
}

#[test]
fn random_requests_over_ssh_agree_with_the_model_and_reach_the_file() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let sshd = Sshd::start();
    let first = content(seed, SIZE);
    let file = sparse(&sshd.dir, "disk.img", &first);
    let server = sshd.serve(&file);
    let crowd = Crowd::new(seed, 3000);
    let mut disk = Disk::new(&first, crowd.stripe);
    println!("{:?}", disk.exercise(server.socket(), &crowd));
    let mut client = server.client();
    assert!(client.can(can::FLUSH) && client.can(can::FUA) && client.can(can::MULTI_CONN) && !client.can(can::TRIM));
    disk.compare_with("over ssh", &mut client, false);
    client.flush().expect("flush");
    disk.compare("the file", &std::fs::read(&file).expect("the file"));
}

/// The command line of virt-v2v's public sources. The test adds what makes it independent of the
/// user's own keys and known hosts.
#[test]
fn virt_v2v_reads_a_disk_from_another_host() {
    let sshd = Sshd::start();
    let image = sshd.dir.file("guest.vmdk", &content(3, 1 << 20));
    let nbdkit = sshd.dir.join("nbdkit");
    std::os::unix::fs::symlink(rbdkit_tests::server::program(), &nbdkit).expect("a link");
    let mut launch = Launch::new(["--threads", "16", "-D", "nbdkit.backend.datapath=0", "--readonly"])
        .program(nbdkit)
        .socket_options(&["--name", "in0", "--exit-with-parent", "--foreground", "--unix"], "--pidfile");
    for filter in ["cow", "count", "retry"] {
        launch = launch.args(["--filter", filter]);
    }
    let server = launch
        .args(["ssh", "host=127.0.0.1"])
        .path("path", &image)
        .arg(format!("port={}", sshd.port))
        .path("cow-on-read", &sshd.dir.join("convert"))
        .env("SSH_AUTH_SOCK", "/no/such/agent")
        .arg("config=")
        .path("known-hosts", &sshd.dir.join("known"))
        .path("identity", &sshd.dir.join("id"))
        .start();
    assert!(server.client().read(0, 65536).expect("the first bytes") == content(3, 1 << 20)[..65536]);
    let outcome = server.stop();
    let counted = "nbdkit[in0]: info: count: count bytes: read 65536, written 0, zeroed 0, trimmed 0\n";
    assert!(outcome.status.success());
    assert_eq!(outcome.stderr, counted);
}

#[test]
fn copies_there_and_back_are_the_same() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let sshd = Sshd::start();
    let image = sshd.dir.file("a disk.img", &content(seed, 20 << 20));
    let server = sshd.serve(&image);
    let copy = sshd.dir.join("copy.img");
    tool("nbdcopy", [&server.uri(), text(&copy)]).ok();
    assert!(std::fs::read(&copy).expect("the copy") == std::fs::read(&image).expect("the image"));
    let other = sshd.dir.file("other.img", &content(seed ^ 1, 20 << 20));
    tool("nbdcopy", ["--flush", text(&other), &server.uri()]).ok();
    assert!(std::fs::read(&other).expect("the other image") == std::fs::read(&image).expect("the image"));
    // A read of the longest allowed length, which the plugin sends in pieces.
    let mut client = server.client();
    assert!(client.read(0, 20 << 20).expect("a long read") == content(seed ^ 1, 20 << 20));
}

#[test]
fn the_hosts_key_has_to_be_the_known_one() {
    let sshd = Sshd::start();
    let file = sshd.dir.sparse_file("disk.img", 1 << 20);
    sshd.know("none", &[]);
    sshd.know("wrong", &["other"]);
    sshd.know("ecdsa", &["host_ecdsa"]);
    sshd.know("hashed", &["host_ed25519"]);
    keygen(&["-H", "-f", text(&sshd.dir.join("hashed"))]);
    let said = refused(sshd.launch("none", &file));
    let none = sshd.dir.join("none");
    assert!(said.contains(&format!("ssh: 127.0.0.1: the host's key is not in {}", none.display())), "{said}");
    let said = refused(sshd.launch("wrong", &file));
    assert!(said.contains("the host's key is not the one that is in "), "{said}");
    // Another of the server's keys is known, so the plugin asks for that one.
    for known in ["ecdsa", "hashed"] {
        assert_eq!(sshd.launch(known, &file).start().client().size, 1 << 20, "{known}");
    }
    let unchecked = sshd.launch("wrong", &file).arg("verify-remote-host=false").start();
    assert_eq!(unchecked.client().size, 1 << 20);
}

#[test]
fn a_user_without_a_valid_key_is_refused_in_one_line() {
    let sshd = Sshd::start();
    let file = sshd.dir.sparse_file("disk.img", 1 << 20);
    let other = || sshd.stranger("known", &file).path("identity", &sshd.dir.join("other"));
    let said = refused(other());
    assert!(
        said.contains("no key was accepted, and no password was given (the host offers publickey,password)"),
        "{said}"
    );
    let said = refused(other().arg("password=wrong"));
    assert!(said.contains("neither a key nor the password was accepted"), "{said}");
    assert!(!said.contains("wrong"), "{said}");
    let said = refused(Launch::new(["ssh", "host=127.0.0.1", "port=1", "config=", "/disk.img"]));
    assert!(said.contains("port 1: Connection refused"), "{said}");
    let said = refused(sshd.launch("known", Path::new("/no/such/disk.img")));
    assert!(said.contains("cannot open /no/such/disk.img: the server says \"No such file\""), "{said}");
}

#[test]
fn keys_come_from_the_agent_and_names_from_the_configuration() {
    let sshd = Sshd::start();
    let file = sshd.dir.sparse_file("disk.img", 1 << 20);
    let socket = sshd.dir.join("agent");
    let mut command = Command::new("ssh-agent");
    let mut agent = Killed(command.args(["-D", "-a"]).arg(&socket).stdout(Stdio::piped()).spawn().expect("ssh-agent"));
    // It prints a line as soon as its socket exists.
    let said = Lines::of(agent.0.stdout.take().expect("a pipe"));
    said.next("the agent's socket").expect("the agent's socket");
    let mut add = Command::new("ssh-add");
    let add = wait::output(add.arg("-q").arg(sshd.dir.join("id")).env("SSH_AUTH_SOCK", &socket));
    assert!(add.status.success(), "{}", String::from_utf8_lossy(&add.stderr));
    let by_agent = sshd.stranger("known", &file).env("SSH_AUTH_SOCK", &socket).start();
    assert_eq!(by_agent.client().size, 1 << 20);
    drop(agent);

    let config = format!(
        "Host far\n HostName 127.0.0.1\n Port {}\n IdentityFile {}\n UserKnownHostsFile {}\n ControlMaster auto\n",
        sshd.port,
        sshd.dir.join("id").display(),
        sshd.dir.join("known").display()
    );
    let config = sshd.dir.file("config", config.as_bytes());
    let by_name = Launch::new(["ssh", "host=far"]).path("config", &config).path("path", &file).start();
    assert_eq!(by_name.client().size, 1 << 20);
}

/// An `ssh` that asks for a password as the real one does. If the answer is right it becomes the
/// server itself.
const FAKE: &str = r#"#!/bin/sh
[ "$("$SSH_ASKPASS" "Enter passphrase for key '/key': ")" = "" ] || exit 1
[ "$("$SSH_ASKPASS" "me@far's password: ")" = "$EXPECTED" ] || {
    echo "me@far: Permission denied (password)." >&2
    exit 255
}
exec /usr/lib/openssh/sftp-server
"#;

#[test]
fn the_password_reaches_ssh_in_every_way_of_giving_it() {
    // sshd checks passwords with the system, where a test has no user of its own. So this script
    // stands in for ssh.
    let dir = TempDir::new();
    let file = dir.sparse_file("disk.img", 1 << 20);
    // A password is bytes: the second one is Latin-1.
    for password in [&br#"  s\3cret "$x" 'y'"#[..], b"h\xfcsch \xff"] {
        let password = OsStr::from_bytes(password);
        let stored = dir.file("password", &[password.as_bytes(), b"\nnot this\n"].concat());
        let temporary = dir.join("tmp");
        let _ = std::fs::create_dir(&temporary);
        let launch = || {
            let launch = Launch::new(["ssh", "host=far"]).path("path", &file).with_program(&dir, "ssh", FAKE);
            launch.env("EXPECTED", password).env("TMPDIR", &temporary)
        };
        let server = launch().path("password", Path::new(password)).start();
        assert_eq!(server.client().size, 1 << 20);
        let server = launch().arg(format!("password=+{}", stored.display())).start();
        assert_eq!(server.client().size, 1 << 20);
        // The shell opens the file and passes the descriptor on.
        let shell = format!("#!/bin/bash\nexec 9<{}\nexec '{}' \"$@\"\n", stored.display(), program().display());
        let shell = dir.program("shell", &shell);
        let server = launch().arg("password=-9").program(shell).start();
        assert_eq!(server.client().size, 1 << 20);
        // Neither a command line nor a file contains the password.
        let left = || std::fs::read_dir(&temporary).expect("the directory for temporary files").count();
        server.wait_until("the password is gone", |_| left() == 0);
        let said = refused(launch().arg("password=wrong"));
        assert!(said.contains("neither a key nor the password was accepted (the host offers password)"), "{said}");
    }
}

fn program() -> PathBuf {
    rbdkit_tests::server::program()
}

#[test]
fn a_host_that_goes_away_is_an_error_and_the_next_client_connects_anew() {
    let sshd = Sshd::start();
    let file = sshd.dir.file("disk.img", &content(3, 1 << 20));
    let server = sshd.serve(&file);
    let mut client = server.client();
    assert!(client.read(0, 4096).is_ok());
    // The processes are stopped, so that the requests are in flight when they are killed.
    sshd.signal_sessions("-STOP");
    for nth in 0..8 {
        client.submit(cmd::READ, 0, nth * 4096, 4096, &[]).expect("a request");
    }
    sshd.signal_sessions("-KILL");
    for _ in 0..8 {
        assert_eq!(client.receive().expect("a reply").result, Err(5));
    }
    assert_eq!(client.read(0, 512), Err(5), "the session stays broken");
    assert_eq!(client.flush(), Err(5));
    assert!(server.client().read(0, 4096).is_ok(), "a new client has a new session");
    client.disconnect();
    let outcome = server.stop();
    // The message depends on whether ssh had taken everything that the plugin sent.
    let words = ["ssh: 127.0.0.1: the server closed the connection", "ssh: 127.0.0.1: the connection is lost"];
    assert!(outcome.status.success() && words.iter().any(|words| outcome.stderr.contains(words)), "{}", outcome.stderr);
}

#[test]
fn the_server_is_confined_and_ssh_is_not() {
    let sshd = Sshd::start();
    let file = sshd.dir.file("disk.img", &content(3, 1 << 20));
    let server = Launch::new(["-v", "ssh", "host=127.0.0.1", "config="])
        .env("SSH_AUTH_SOCK", "/no/such/agent")
        .arg(format!("port={}", sshd.port))
        .path("known-hosts", &sshd.dir.join("known"))
        .path("identity", &sshd.dir.join("id"))
        .path("path", &file)
        .start();
    server.wait_for_log("confined: no new privileges; ");
    assert!(!server.stderr().contains("not confined"), "{}", server.stderr());
    for _ in 0..3 {
        // Each client has an ssh process of its own, which ends with the client.
        let mut client = server.client();
        assert_eq!(client.read(0, 4096), Ok(content(3, 1 << 20)[..4096].to_vec()));
        client.disconnect();
    }
    let sessions = || Sshd::sessions(sshd.child.id()).len();
    server.wait_until("no session is left", |_| sessions() == 0);
    assert!(server.stop().status.success());
}

#[test]
fn a_file_is_created_once_with_its_size_and_mode() {
    let sshd = Sshd::start();
    let file = sshd.dir.join("new.img");
    let server = sshd.launch("known", &file).args(["create=true", "create-size=5M", "create-mode=0640"]).start();
    assert!(!file.exists(), "not before the first client");
    let mut client = server.client();
    assert_eq!((client.size, client.read(0, 512)), (5 << 20, Ok(vec![0; 512])));
    client.write(4096, &[7; 512]).expect("a write");
    client.disconnect();
    assert_eq!(file.metadata().expect("the file").permissions().mode() & 0o777, 0o640);
    assert_eq!(server.client().read(4096, 512), Ok(vec![7; 512]), "the second client finds what the first has written");
    drop(server);
    let server = sshd.launch("known", &file).args(["create=true", "create-size=1M"]).start();
    let mut client = server.client();
    assert_eq!((client.size, client.read(4096, 512)), (1 << 20, Ok(vec![0; 512])), "what was there is gone");
    drop(server);
    let server = sshd.launch("known", &file).arg("-r").start();
    let mut readonly = server.client();
    assert!(readonly.can(can::READ_ONLY) && readonly.write(0, &[1]).is_err());
}
