//! The ways to the server: redirects, TLS, a proxy, names and Unix sockets.

use std::path::Path;

use rbdkit_slow_server::Identity;

use super::*;

#[test]
fn redirects_are_followed_unless_they_are_not_to_be() {
    let server = plain();
    let long = format!("{}/redirect/5", server.url());
    let endless = format!("{}/loop", server.url());
    run(async {
        reads_right(&serving(&[("url", &long)])).await;
        let error = refused(&serving(&[("url", &long), ("followlocation", "false")])).await;
        assert!(error.contains("302: a redirect that is not followed"), "{error}");
        let error = refused(&serving(&[("url", &endless)])).await;
        assert!(error.contains("the server redirects more than 30 times"), "{error}");
    });
}

#[test]
fn a_redirect_to_another_protocol_is_refused() {
    let server = plain();
    for (url, protocols) in
        [("ftp://127.0.0.1/x", "http,https"), ("file:///etc/passwd", "http,https"), (&*url(&server), "https,http")]
    {
        let from = format!("{}/elsewhere?{url}", server.url());
        let plugin = serving(&[("url", &from), ("protocols", protocols)]);
        match url.starts_with("http") {
            true => run(reads_right(&plugin)),
            false => {
                let error = run(refused(&plugin));
                assert!(error.contains("a redirect may lead only to http and https"), "{error}");
            }
        }
    }
}

#[test]
fn tls_is_checked_and_the_error_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::create(dir.path(), "localhost").unwrap();
    let content = || Content::Pattern { seed: SEED, size: SIZE };
    let server = SlowServer::start(content(), Rules::default(), Some(&identity)).unwrap();
    let trust = identity.certificate.to_str().unwrap();
    run(reads_right(&plugin_for(&server, &[("cainfo", trust)])));
    run(reads_right(&plugin_for(&server, &[("sslverify", "false"), ("ssl-version", "tlsv1.3")])));
    let error = run(refused(&plugin_for(&server, &[])));
    assert!(error.contains("self-signed certificate (cainfo= or capath= says whom to trust"), "{error}");
    let other = Identity::create(dir.path(), "other.example").unwrap();
    let stranger = SlowServer::start(content(), Rules::default(), Some(&other)).unwrap();
    let error = run(refused(&plugin_for(&stranger, &[("cainfo", other.certificate.to_str().unwrap())])));
    assert!(error.contains("no alternative certificate subject name matches target host name 'localhost'"), "{error}");
    let wrong_protocol = url(&server).replacen("https", "http", 1);
    run(refused(&serving(&[("url", &wrong_protocol)])));
}

#[test]
fn a_proxy_is_used_and_told_who_we_are() {
    // The slow server answers a proxy's requests as its own: their paths are whole URLs.
    let proxy = plain();
    let plugin = serving(&[
        ("url", "http://disks.example/disk.img"),
        ("proxy", &proxy.url()),
        ("proxy-user", "ich"),
        ("proxy-password", "geheim"),
    ]);
    run(reads_right(&plugin));
    let head = &proxy.heads()[0];
    assert!(head.starts_with("GET http://disks.example/disk.img "), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic aWNoOmdlaGVpbQ==\r\n"), "{head}");
}

#[test]
fn a_name_is_resolved_as_told() {
    let server = plain();
    let port = server.address().port();
    let url = format!("http://disks.example:{port}/disk.img");
    run(reads_right(&serving(&[
        ("url", &url),
        ("resolve", &format!("disks.example:{port}:127.0.0.1")),
        ("ipresolve", "v4"),
    ])));
}

#[test]
fn a_unix_socket_is_an_address_too() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1000];
        assert!(stream.read(&mut head).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 206 x\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/4096\r\n\r\nx").unwrap();
    });
    let path: &Path = &path;
    let plugin = serving(&[("url", "http://localhost/x"), ("unix-socket-path", path.to_str().unwrap())]);
    run(async { assert_eq!(open(&plugin, true).await.unwrap().get_size().await.unwrap(), 4096) });
    thread.join().unwrap();
}
