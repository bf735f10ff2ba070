//! Real clients of a server with TLS: nbdinfo, nbdcopy, nbdsh, qemu-img and nbdkit's nbd plugin.

use std::path::{Path, PathBuf};

use rbdkit_tests::{Launch, Rng, Server, TempDir, free_port, nbdsh, tool};
use rustix::process::Signal;

use crate::pki::{CLIENT_NAME, Keys, Pki};

fn size(uri: &str) -> rbdkit_tests::Finished {
    tool("nbdinfo", ["--size", uri])
}

/// A server with a disk of 1 MiB, which requires TLS.
fn server(arguments: &[&str]) -> Server {
    Launch::new(["--tls=require"]).args(arguments).args(["memory", "1M"]).start()
}

/// A URI without TLS.
fn plain(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

#[test]
fn nbdinfo_uses_certificates_with_both_versions_of_tls() {
    let pki = Pki::shared();
    for (priority, version) in [("NORMAL:-VERS-TLS1.3", "TLSv1_2"), ("NORMAL:-VERS-TLS1.2", "TLSv1_3")] {
        let server = server(&["-v", &pki.option(), &format!("--tls-priority={priority}")]);
        assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576");
        server.wait_for_log(version);
        // Nothing but TLS is answered.
        assert!(size(&plain(server.socket())).fails().contains("server requires TLS"));
    }
}

#[test]
fn nbdinfo_uses_keys_with_both_versions_of_tls() {
    let keys = Keys::new();
    for (priority, version) in [("NORMAL:-VERS-TLS1.3", "TLSv1.2"), ("NORMAL:-VERS-TLS1.2", "TLSv1.3")] {
        let server = server(&["-v", &keys.option(), &format!("--tls-priority={priority}")]);
        assert_eq!(size(&keys.uri("alice", server.socket())).ok().trim(), "1048576");
        server.wait_for_log(version);
        size(&keys.uri("bob", server.socket())).fails();
        // Another key for the same user.
        size(&Keys::new().uri("alice", server.socket())).fails();
        assert_eq!(size(&keys.uri("alice", server.socket())).ok().trim(), "1048576");
    }
}

#[test]
fn with_tls_on_clients_choose() {
    let pki = Pki::shared();
    let server = Server::start(["--tls=on", &pki.option(), "memory", "1M"]);
    assert_eq!(size(&plain(server.socket())).ok(), size(&pki.uri(server.socket())).ok());
    let off = Server::start(["--tls=off", &pki.option(), "memory", "1M"]);
    assert!(size(&pki.uri(off.socket())).fails().contains("TLS"));
    assert_eq!(size(&plain(off.socket())).ok().trim(), "1048576");
}

/// Copies a file with odd lengths and holes through the server, and back.
fn copies(arguments: &[&str], uri: impl Fn(&Path) -> String) {
    let directory = TempDir::new();
    let (from, disk, back) = (directory.join("from"), directory.join("disk"), directory.join("back"));
    let mut bytes = Rng::new(7).bytes(9 << 20);
    bytes[3 << 20..5 << 20].fill(0);
    std::fs::write(&from, &bytes).unwrap();
    std::fs::write(&disk, vec![1; bytes.len()]).unwrap();
    let server = Launch::new(arguments).arg("--tls=require").arg("file").arg(&disk).start();
    let uri = uri(server.socket());
    tool("nbdcopy", ["--connections=4", from.to_str().unwrap(), &uri]).ok();
    assert!(std::fs::read(&disk).unwrap() == bytes, "what nbdcopy wrote");
    tool("nbdcopy", ["--connections=4", "--request-size=1048576", &uri, back.to_str().unwrap()]).ok();
    assert!(std::fs::read(&back).unwrap() == bytes, "what nbdcopy read");
}

#[test]
fn nbdcopy_copies_there_and_back_with_certificates() {
    let pki = Pki::shared();
    copies(&[&pki.option()], |socket| pki.uri(socket));
}

#[test]
fn nbdcopy_copies_there_and_back_with_keys() {
    let keys = Keys::new();
    copies(&[&keys.option()], |socket| keys.uri("alice", socket));
}

#[test]
fn nbdsh_reads_and_writes_requests_of_every_length() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    let with_certificates = Server::start(["--tls=require", &pki.option(), "memory", "64M"]);
    let with_keys = Server::start(["--tls=require", &keys.option(), "memory", "64M"]);
    for uri in [pki.uri(with_certificates.socket()), keys.uri("alice", with_keys.socket())] {
        let script = r#"
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_uri_allow_local_file(True)
h.connect_uri(uri)
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
for length in [1, 511, 4096, 16384, 16385, 65536, 262144, 262145, 1000003, 33554432]:
    data = bytes((i * 31 + length) % 251 for i in range(997)) * (length // 997 + 1)
    data = data[:length]
    h.pwrite(data, 77)
    assert h.pread(length, 77) == data, length
# Many at once.
buffers = [nbd.Buffer(262144) for _ in range(40)]
for cookie in [h.aio_pread(buffer, 262144 * i) for i, buffer in enumerate(buffers)]:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
whole = h.pread(262144 * 40, 0)
assert b"".join(bytes(buffer.to_bytearray()) for buffer in buffers) == whole
h.shutdown()
"#;
        nbdsh(&uri, script).ok();
    }
}

#[test]
fn qemu_img_uses_certificates_and_keys_over_tcp() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    let convert = |option: &str, object: String| {
        let (directory, port) = (TempDir::new(), free_port());
        let disk = directory.file("disk", &Rng::new(3).bytes(3 << 20));
        let out = directory.join("out");
        let pid = directory.join("pid");
        let mut server = std::process::Command::new(rbdkit_tests::server::program())
            .args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "--tls=require", option, "-P"])
            .args([&pid, &PathBuf::from("file"), &disk])
            .spawn()
            .unwrap();
        rbdkit_tests::wait::until("the server listens", || pid.exists());
        let image = format!("driver=nbd,host=localhost,port={port},tls-creds=tls0");
        let arguments = ["convert", "--object", &object, "--image-opts", &image, "-O", "raw", out.to_str().unwrap()];
        tool("qemu-img", arguments).ok();
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&disk).unwrap());
        server.kill().unwrap();
        server.wait().unwrap();
    };
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", pki.path().display());
    convert(&pki.option(), object);
    let object = format!("tls-creds-psk,id=tls0,endpoint=client,username=alice,dir={}", keys.directory().display());
    convert(&keys.option(), object);
}

#[test]
fn the_nbd_plugin_of_nbdkit_is_a_client() {
    let (pki, keys) = (Pki::shared(), Keys::new());
    for (option, more) in [
        (pki.option(), vec![format!("tls-certificates={}", pki.path().display())]),
        (keys.option(), vec![format!("tls-psk={}", keys.path().display()), "tls-username=alice".to_string()]),
    ] {
        let server = server(&[&option]);
        let front = Launch::new(["nbd", "tls=require"]).program("nbdkit".into()).path("socket", server.socket());
        let front = front.args(more).start();
        nbdsh(&front.uri(), "h = nbd.NBD(); h.connect_uri(uri); h.pwrite(b'x' * 300000, 1); print(h.pread(3, 0))").ok();
    }
}

#[test]
fn verify_peer_lets_in_clients_of_the_authority_only() {
    let pki = Pki::new();
    let server = server(&["-v", "--tls-verify-peer", &pki.option()]);
    assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576");
    server.wait_for_log(&format!("client: '{CLIENT_NAME}'"));
    // Without a certificate; libnbd trusts the server by the authority alone.
    let without = TempDir::new();
    std::fs::copy(pki.file("ca-cert.pem"), without.join("ca-cert.pem")).unwrap();
    let uri = |directory: &TempDir| {
        format!("nbds+unix:///?socket={}&tls-certificates={}", server.socket().display(), directory.path().display())
    };
    size(&uri(&without)).fails();
    server.wait_for_log("peer sent no certificates");
    // With one of another authority.
    let foreign = Pki::shared();
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(foreign.file(file), without.join(file)).unwrap();
    }
    size(&uri(&without)).fails();
    server.wait_for_log("invalid peer certificate: ");
    // With one whose time is over.
    pki.client("activation_date = 2020-01-01\nexpiration_date = 2021-01-01\n");
    size(&pki.uri(server.socket())).fails();
    server.wait_for_log("invalid peer certificate: certificate expired");
    // With one that is for servers.
    for (from, to) in [("server-cert.pem", "client-cert.pem"), ("server-key.pem", "client-key.pem")] {
        std::fs::copy(pki.file(from), pki.file(to)).unwrap();
    }
    size(&pki.uri(server.socket())).fails();
    server.wait_for_log("certificate does not allow extended key usage");
}

#[test]
fn sighup_makes_the_server_read_certificates_and_revocations_again() {
    let pki = Pki::new();
    let server = server(&["-v", "--tls-verify-peer", &pki.option()]);
    // The server is confined, so it cannot open these files itself.
    server.wait_for_log("confined: ");
    assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576");
    pki.revoke_client();
    assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576", "the list is not read yet");
    server.signal(Signal::HUP);
    server.wait_for_log("the certificates were read again");
    size(&pki.uri(server.socket())).fails();
    server.wait_for_log("invalid peer certificate: Revoked");
    // Another client's certificate is not on the list.
    pki.client("expiration_days = 10\n");
    assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576");
    // What is wrong changes nothing.
    std::fs::write(pki.file("server-cert.pem"), "nonsense").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("server-cert.pem: has no certificate; the certificates read before stay in use");
    assert_eq!(size(&pki.uri(server.socket())).ok().trim(), "1048576");
}

#[test]
fn filters_learn_whether_there_is_tls_and_who_the_client_is() {
    let pki = Pki::shared();
    let fallback = Launch::new(["--tls=on", &pki.option(), "--filter=tls-fallback", "memory", "1M"]).start();
    assert_eq!(size(&plain(fallback.socket())).ok().trim(), "512");
    assert_eq!(size(&pki.uri(fallback.socket())).ok().trim(), "1048576");

    let with = |rule: &str| {
        Launch::new(["--tls=require", "--tls-verify-peer", &pki.option(), "--filter=ip", "memory", "1M"])
            .args([rule, "deny=all"])
            .start()
    };
    for rule in [format!("allow=dn:{CLIENT_NAME}"), "allow=issuer-dn:CN=Test CA".to_string()] {
        assert_eq!(size(&pki.uri(with(&rule).socket())).ok().trim(), "1048576", "{rule}");
    }
    for rule in ["allow=dn:CN=somebody else", "allow=issuer-dn:CN=Test"] {
        let server = with(rule);
        size(&pki.uri(server.socket())).fails();
        server.wait_for_log(&format!("certificate {CLIENT_NAME}, issued by CN=Test CA"));
    }
}

#[test]
fn a_plugin_of_nbdkit_learns_the_names_in_the_certificate() {
    let source = r#"
        #define NBDKIT_API_VERSION 2
        #include <nbdkit-plugin.h>
        #include <stdio.h>
        #include <string.h>
        /* Since nbdkit 1.46. */
        extern char *nbdkit_peer_tls_dn (void);
        extern char *nbdkit_peer_tls_issuer_dn (void);
        #define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
        static void *p_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
        static int64_t p_get_size (void *h) { return 512; }
        static int p_pread (void *h, void *b, uint32_t c, uint64_t o, uint32_t f) { memset (b, 0, c); return 0; }
        static const char *p_description (void *h) {
            static char text[512];
            snprintf (text, sizeof text, "%s / %s", nbdkit_peer_tls_dn (), nbdkit_peer_tls_issuer_dn ());
            return text;
        }
        static struct nbdkit_plugin plugin = {
            .name = "names", .open = p_open, .get_size = p_get_size, .pread = p_pread,
            .export_description = p_description,
        };
        NBDKIT_REGISTER_PLUGIN (plugin)"#;
    let (dir, pki) = (TempDir::new(), Pki::shared());
    let (text, library) = (dir.file("names.c", source.as_bytes()), dir.join("names.so"));
    let library_path = library.display().to_string();
    tool("gcc", ["-shared", "-fPIC", "-o", &library_path, &text.display().to_string()]).ok();
    let options = ["--tls=on", "--tls-verify-peer", &pki.option()];
    let server = Launch::new(options).args([&library]).start();
    let info = tool("nbdinfo", [&pki.uri(server.socket())]).ok();
    assert!(info.contains(&format!("{CLIENT_NAME} / CN=Test CA")), "{info}");
    let info = tool("nbdinfo", [&plain(server.socket())]).ok();
    assert!(info.contains("description: ") && !info.contains("CN="), "{info}");
}
