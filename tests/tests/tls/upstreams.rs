//! The nbd plugin in front of servers with TLS: Debian's nbdkit, and rbdkit itself.

use std::path::Path;
use std::process::{Child, Command};

use rbdkit_tests::{Launch, Server, TempDir, free_port, nbdsh, tool, wait};

use crate::pki::{Keys, Pki};

fn size(server: &Server) -> rbdkit_tests::Finished {
    tool("nbdinfo", ["--size", &server.uri()])
}

fn nbdkit(arguments: &[&str]) -> Server {
    Launch::new(["--tls=require"]).args(arguments).args(["memory", "4M"]).program("nbdkit".into()).start()
}

fn in_front_of(socket: &Path) -> Launch {
    Launch::new(["nbd"]).path("socket", socket)
}

fn certificates(pki: &Pki) -> String {
    format!("tls-certificates={}", pki.path().display())
}

/// Reads and writes through the plugin, with requests of many lengths.
fn reads_and_writes(server: &Server) {
    let script = r#"
h = nbd.NBD()
h.connect_uri(uri)
for length in [1, 4096, 16385, 262144, 1000003]:
    data = bytes((i * 7 + length) % 253 for i in range(length))
    h.pwrite(data, 3)
    assert h.pread(length, 3) == data, length
buffers = [nbd.Buffer(65536) for _ in range(60)]
for cookie in [h.aio_pread(buffer, 65536 * i) for i, buffer in enumerate(buffers)]:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
assert b"".join(bytes(buffer.to_bytearray()) for buffer in buffers) == h.pread(65536 * 60, 0)
h.shutdown()
"#;
    nbdsh(&server.uri(), script).ok();
}

#[test]
fn certificates_work_with_nbdkit() {
    let pki = Pki::shared();
    let upstream = nbdkit(&["--tls-verify-peer", &pki.option()]);
    for shared in ["shared=false", "shared=true"] {
        let front = in_front_of(upstream.socket()).args(["tls=require", shared, &certificates(pki)]).start();
        reads_and_writes(&front);
    }
    let front = Launch::new(["nbd", &pki.uri(upstream.socket())]).start();
    assert_eq!(size(&front).ok().trim(), "4194304");
    // Without TLS the server refuses.
    let plain = in_front_of(upstream.socket()).start();
    assert!(size(&plain).code != 0);
    plain.wait_for_log("it requires TLS (tls=require)");
}

#[test]
fn keys_work_with_nbdkit_and_with_rbdkit() {
    let keys = Keys::new();
    let upstream = nbdkit(&[&keys.option()]);
    let own = Server::start(["--tls=require", &keys.option(), "memory", "4M"]);
    for socket in [upstream.socket(), own.socket()] {
        let psk = format!("tls-psk={}", keys.path().display());
        let front = in_front_of(socket).args(["tls=require", &psk, "tls-username=alice"]).start();
        reads_and_writes(&front);
        let front = Launch::new(["nbd", &keys.uri("alice", socket)]).start();
        assert_eq!(size(&front).ok().trim(), "4194304");
        // Another key.
        let other = Keys::new();
        let front = Launch::new(["nbd", &other.uri("alice", socket)]).start();
        assert!(size(&front).code != 0);
        front.wait_for_log("TLS: ");
    }
}

/// A server on TCP, killed when it is dropped.
struct Tcp(Child, u16);

impl Tcp {
    fn start(option: &str) -> Tcp {
        let (port, directory) = (free_port(), TempDir::new());
        let pid = directory.join("pid");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "--tls=require", option, "-P"]);
        let child = command.arg(&pid).args(["memory", "1M"]).spawn().expect("nbdkit");
        wait::until("nbdkit listens", || pid.exists());
        Tcp(child, port)
    }

    /// What the plugin says of this server.
    fn through_the_plugin(&self, host: &str, more: &[&str]) -> Result<(), String> {
        let front = Launch::new(["nbd", &format!("hostname={host}"), &format!("port={}", self.1), "tls=require"]);
        let front = front.args(more).start();
        match size(&front) {
            finished if finished.code == 0 => Ok(()),
            _ => {
                front.wait_for_log("nbd: server at ");
                Err(front.stderr())
            }
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_has_to_be_who_the_certificate_says() {
    let pki = Pki::new();
    let directory = certificates(&pki);
    let server = Tcp::start(&pki.option());
    for host in ["localhost", "127.0.0.1"] {
        server.through_the_plugin(host, &[&directory]).unwrap();
    }
    drop(server);
    // Only the common name names the server, as in nbdkit's older instructions.
    pki.server("localhost", "");
    let server = Tcp::start(&pki.option());
    server.through_the_plugin("localhost", &[&directory]).unwrap();
    drop(server);
    pki.server("example.com", "dns_name = example.com\n");
    let server = Tcp::start(&pki.option());
    let refused = server.through_the_plugin("localhost", &[&directory]).unwrap_err();
    assert!(refused.contains("TLS: invalid peer certificate"), "{refused}");
    server.through_the_plugin("localhost", &[&directory, "tls-hostname=example.com"]).unwrap();
    server.through_the_plugin("localhost", &[&directory, "tls-verify=false"]).unwrap();
    // Another authority.
    let foreign = certificates(Pki::shared());
    let refused = server.through_the_plugin("localhost", &[&foreign, "tls-hostname=example.com"]).unwrap_err();
    assert!(refused.contains("TLS: invalid peer certificate"), "{refused}");
    drop(server);
    pki.server("localhost", "activation_date = 2020-01-01\nexpiration_date = 2021-01-01\n");
    let server = Tcp::start(&pki.option());
    let refused = server.through_the_plugin("localhost", &[&directory]).unwrap_err();
    assert!(refused.contains("certificate expired"), "{refused}");
}

#[test]
fn a_server_without_tls_is_used_only_if_tls_is_not_required() {
    let pki = Pki::shared();
    let upstream = Server::start(["--tls=off", "memory", "1M"]);
    let front = in_front_of(upstream.socket()).args(["tls=on", &certificates(pki)]).start();
    assert_eq!(size(&front).ok().trim(), "1048576");
    // A parameter of TLS alone means the same.
    let front = in_front_of(upstream.socket()).arg(certificates(pki)).start();
    assert_eq!(size(&front).ok().trim(), "1048576");
    for front in [
        in_front_of(upstream.socket()).args(["tls=require", &certificates(pki)]).start(),
        Launch::new(["nbd", &pki.uri(upstream.socket())]).start(),
    ] {
        assert!(size(&front).code != 0);
        front.wait_for_log("it does not encrypt the connection");
    }
}
