//! The plugin against the slow server, which does to it what real servers do and worse.

use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Client, Fill, Flags, Peer, Span};
use rbdkit_slow_server::{Chances, Content, Fault, Identity, Rules, SlowServer};

use super::*;

const SIZE: u64 = (1 << 20) + 777;
const SEED: u64 = 1;

/// A directory that is removed at the end.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> TestDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rbdkit-curl-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        TestDir(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future)
}

fn configured(params: &[(&str, &str)]) -> Result<Curl, ConfigError> {
    let mut plugin = Curl::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    Ok(plugin)
}

fn config_error(params: &[(&str, &str)]) -> String {
    configured(params).err().expect("an error").to_string()
}

fn serving(params: &[(&str, &str)]) -> Curl {
    let mut plugin = configured(params).unwrap();
    plugin.after_fork().unwrap();
    plugin
}

async fn open(plugin: &Curl, readonly: bool) -> Result<Arc<dyn Handle>> {
    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    plugin.open(OpenArgs { readonly, exportname: String::new(), client }).await
}

async fn refused(plugin: &Curl) -> String {
    open(plugin, true).await.err().expect("a refusal").to_string()
}

/// Reads into the middle of a larger buffer.
async fn read(handle: &dyn Handle, offset: u64, length: u32) -> Result<Vec<u8>> {
    let span = Span::new(7, length);
    let (mut buffer, result) = handle.pread(Buffer::new(length + 9), span, offset).await;
    result?;
    assert!(
        buffer.fills().filter(|(run, _)| run.at < 7 || run.at >= 7 + length).all(|(_, fill)| fill == Fill::Unfilled)
    );
    Ok(buffer.bytes(span).to_vec())
}

async fn write(handle: &dyn Handle, offset: u64, bytes: Vec<u8>) -> Result<()> {
    let buffer = Buffer::from_vec(bytes);
    let span = buffer.span();
    handle.pwrite(buffer, span, offset, Flags::NONE).await.1
}

fn pattern(offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    Content::Pattern { seed: SEED, size: SIZE }.read(&mut bytes, offset).unwrap();
    bytes
}

fn server(rules: Rules) -> SlowServer {
    SlowServer::start(Content::Pattern { seed: SEED, size: SIZE }, rules, None).unwrap()
}

fn plain() -> SlowServer {
    server(Rules::default())
}

fn url(server: &SlowServer) -> String {
    format!("{}/disk.img", server.url())
}

/// A plugin for this server with more parameters.
fn plugin_for(server: &SlowServer, params: &[(&str, &str)]) -> Curl {
    let url = url(server);
    let mut all = vec![("url", url.as_str())];
    all.extend(params);
    serving(&all)
}

async fn reads_right(plugin: &Curl) {
    let handle = open(plugin, true).await.unwrap();
    assert_eq!(handle.get_size().await.unwrap(), SIZE);
    assert_eq!(read(&*handle, 1000, 5000).await.unwrap(), pattern(1000, 5000));
    handle.close().await;
}

#[test]
fn a_disk_is_read_in_ranges_over_kept_connections() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        assert_eq!(handle.get_size().await.unwrap(), SIZE);
        for (offset, length) in
            [(0, 1), (0, 4096), (777, 100_000), (SIZE - 1, 1), (SIZE - 5000, 5000), (0, SIZE as u32)]
        {
            assert_eq!(read(&*handle, offset, length).await.unwrap(), pattern(offset, length), "{offset} {length}");
        }
    });
    assert_eq!(server.counts().connections, 1);
    assert_eq!(server.counts().requests, 7);
}

#[test]
fn requests_are_under_way_at_once_up_to_the_number_of_connections() {
    let server = server(Rules { delay: Duration::from_millis(50), ..Rules::default() });
    let plugin = plugin_for(&server, &[("connections", "5")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        let reads = (0..20).map(|n| {
            let handle = Arc::clone(&handle);
            tokio::spawn(async move { (n, read(&*handle, n * 4096, 4096).await.unwrap()) })
        });
        for task in reads.collect::<Vec<_>>() {
            let (n, bytes) = task.await.unwrap();
            assert_eq!(bytes, pattern(n * 4096, 4096));
        }
    });
    assert_eq!(server.counts().at_once, 5);
    assert!(server.counts().connections <= 5, "{:?}", server.counts());
}

#[test]
fn a_server_without_head_or_accept_ranges_is_asked_for_one_byte() {
    for rules in [Rules { head: false, ..Rules::default() }, Rules { accept_ranges: false, ..Rules::default() }] {
        let server = server(rules);
        run(async { reads_right(&plugin_for(&server, &[])).await });
        assert!(server.heads()[1].contains("Range: bytes=0-0\r\n"), "{:?}", server.heads());
    }
}

#[test]
fn a_server_without_ranges_is_refused_when_a_client_connects() {
    let server = server(Rules { ranges: false, accept_ranges: false, ..Rules::default() });
    let error = run(async { refused(&plugin_for(&server, &[])).await });
    assert_eq!(error, "curl: GET of the first byte: the server does not support ranges (EIO)");
    assert!(server.counts().requests == 2);
}

#[test]
fn a_server_that_forgets_its_ranges_gives_an_error_and_no_data() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.spoil([Fault::NoRange]);
        let error = read(&*handle, 4096, 4096).await.unwrap_err().to_string();
        assert!(error.contains("bytes 4096-8191: the server does not support ranges"), "{error}");
        // From the beginning it would be right as far as it goes, but it is not what was asked for.
        server.spoil([Fault::NoRange]);
        read(&*handle, 0, 4096).await.unwrap_err();
        assert_eq!(read(&*handle, 4096, 4096).await.unwrap(), pattern(4096, 4096));
    });
}

#[test]
fn every_fault_is_an_error_and_the_next_request_works() {
    let server = plain();
    let plugin = plugin_for(&server, &[("timeout", "2")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        for (fault, errno, what) in [
            (Fault::Reset(0), Errno::Eio, "bytes 8192-139263: "),
            (Fault::Reset(1000), Errno::Eio, "bytes 8192-139263: "),
            (Fault::Cut(70_000), Errno::Eio, "Transferred a partial file"),
            (Fault::Status(500), Errno::Eio, "the server answers 500"),
            (Fault::Status(503), Errno::Eio, "the server answers 503: it is too busy"),
            (Fault::Status(404), Errno::Eio, "the server answers 404: there is no such disk"),
            (Fault::Status(204), Errno::Eio, "the server answers 204"),
            (Fault::WrongRange, Errno::Eio, "the server sends bytes 139264-270335 instead"),
            (Fault::Short, Errno::Eio, "the server announces 65536 bytes instead of 131072"),
            (Fault::Endless, Errno::Eio, "more than was asked for"),
            (Fault::HugeHeader, Errno::Eio, "bytes 8192-139263: "),
            (Fault::Garbage, Errno::Eio, "bytes 8192-139263: "),
            (Fault::Stall, Errno::Etimedout, "Timeout was reached"),
        ] {
            server.spoil([fault]);
            let error = read(&*handle, 8192, 131_072).await.expect_err("a fault");
            assert_eq!(error.errno(), errno, "{fault:?}: {error}");
            assert!(error.to_string().contains(what), "{fault:?}: {error}");
            assert_eq!(read(&*handle, 8192, 131_072).await.unwrap(), pattern(8192, 131_072), "after {fault:?}");
        }
    });
}

#[test]
fn by_chance_faults_never_give_wrong_data() {
    let seed = std::env::var("RBDKIT_SEED").map_or(20261121, |text| text.parse().unwrap());
    println!("seed {seed}");
    let chances = Chances { seed, reset: 100, burst: 40, wrong_range: 80, short: 80 };
    let server = server(Rules { chances: Some(chances), ..Rules::default() });
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        let tasks: Vec<_> = (0..8u64)
            .map(|lane| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move {
                    let mut failures = 0;
                    for n in 0..60u64 {
                        let offset = (lane * 131 + n * 7919) % (SIZE - 70_000);
                        let length = 1 + (n * 1117 % 70_000) as u32;
                        match read(&*handle, offset, length).await {
                            Ok(bytes) => assert!(bytes == pattern(offset, length), "wrong data at {offset}"),
                            Err(_) => failures += 1,
                        }
                    }
                    failures
                })
            })
            .collect();
        let mut failures = 0;
        for task in tasks {
            failures += task.await.unwrap();
        }
        assert!(failures > 20 && failures < 400, "{failures}");
    });
}

#[test]
fn a_server_that_goes_away_and_comes_back_is_found_again() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        server.pause();
        let error = read(&*handle, 0, 512).await.unwrap_err();
        assert_eq!(error.errno(), Errno::Eio);
        assert!(error.to_string().contains("connect"), "{error}");
        assert!(refused(&plugin).await.starts_with("curl: HEAD: "));
        server.resume().unwrap();
        assert_eq!(read(&*handle, 0, 512).await.unwrap(), pattern(0, 512));
    });
}

#[test]
fn a_disk_that_changes_is_noticed() {
    let server = plain();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains("the disk has changed at the server: it is \"2\", it was \"1\""), "{error}");
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        server.change(|rules| rules.size = 4096);
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains(&format!("its size is 4096, it was {SIZE}")), "{error}");
        let error = read(&*handle, 8192, 512).await.unwrap_err().to_string();
        assert!(error.contains("416: the disk has changed"), "{error}");
    });
}

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
        assert!(error.contains("Maximum (30) redirects followed"), "{error}");
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
                assert!(error.contains("rotocol"), "{error}");
            }
        }
    }
}

#[test]
fn user_password_cookie_header_and_agent_are_sent() {
    let server = plain();
    let dir = TestDir::new();
    let password = dir.file("password", "geheim\nsecond line\n");
    let password = format!("+{}", password.display());
    let plugin = plugin_for(
        &server,
        &[
            ("user", "ich"),
            ("password", &password),
            ("cookie", "a=1; b=2"),
            ("header", "X-One: 1"),
            ("header", "X-Empty;"),
            ("header", "Accept:"),
            ("user-agent", "tests/1"),
        ],
    );
    run(reads_right(&plugin));
    for head in server.heads() {
        for line in
            ["Authorization: Basic aWNoOmdlaGVpbQ==", "Cookie: a=1; b=2", "X-One: 1", "X-Empty:", "User-Agent: tests/1"]
        {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is not in\n{head}");
        }
        assert!(!head.contains("Accept:"), "{head}");
    }
    let bare = plain();
    run(reads_right(&plugin_for(&bare, &[])));
    assert!(!bare.heads()[0].contains("User-Agent"), "{:?}", bare.heads());
}

#[test]
fn a_password_comes_from_a_descriptor() {
    use std::os::fd::AsRawFd;
    let server = plain();
    let dir = TestDir::new();
    let file = fs::File::open(dir.file("password", "geheim")).unwrap();
    let plugin = plugin_for(&server, &[("user", "ich"), ("password", &format!("-{}", file.as_raw_fd()))]);
    run(reads_right(&plugin));
    assert!(server.heads()[0].contains("aWNoOmdlaGVpbQ=="));
}

#[test]
fn scripts_run_once_then_when_they_are_old_and_when_the_server_refuses() {
    let server = server(Rules { require: Some("Cookie: token=0".into()), ..Rules::default() });
    let dir = TestDir::new();
    let runs = dir.path("runs");
    let script = format!(r#"echo "$url" >>{}; echo "token=$iteration""#, runs.display());
    let plugin =
        plugin_for(&server, &[("cookie-script", &script), ("header-script", "echo 'X-It: '$iteration; echo X-B: b")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        read(&*handle, 0, 512).await.unwrap();
        let head = server.heads().pop().unwrap();
        assert!(head.contains("X-It: 0\r\nX-B: b\r\n"), "{head}");
        // The cookie expires: many requests meet that at the same time, and one run of the script is enough for all.
        server.change(|rules| rules.require = Some("Cookie: token=1".into()));
        let reads: Vec<_> = (0..8)
            .map(|n| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move { read(&*handle, n * 512, 512).await })
            })
            .collect();
        for task in reads {
            task.await.unwrap().unwrap();
        }
        // One that does not help is an error, not an endless loop.
        server.change(|rules| rules.require = Some("Cookie: token=never".into()));
        let error = read(&*handle, 0, 512).await.unwrap_err().to_string();
        assert!(error.contains("the server answers 401"), "{error}");
    });
    assert_eq!(fs::read_to_string(runs).unwrap(), format!("{}\n", url(&server)).repeat(3));
}

#[test]
fn a_script_is_run_again_when_its_output_is_old() {
    let server = plain();
    let plugin = plugin_for(&server, &[("header-script", "echo X-It: $iteration"), ("header-script-renew", "1")]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        while !server.heads().iter().any(|head| head.contains("X-It: 2\r\n")) {
            read(&*handle, 0, 512).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_script_that_fails_fails_the_request_and_says_so() {
    let server = plain();
    let error = run(refused(&plugin_for(&server, &[("cookie-script", "exit 3")])));
    assert_eq!(error, "curl: cookie-script: the script failed (exit status: 3) (EIO)");
    assert_eq!(server.counts().requests, 0);
}

#[test]
fn cookies_of_the_server_are_kept_by_all_transfers_and_written_back() {
    let server = server(Rules { set_cookie: Some("session=42; Path=/; Max-Age=1000".into()), ..Rules::default() });
    let dir = TestDir::new();
    let jar = dir.path("jar");
    let plugin = plugin_for(&server, &[("cookiejar", jar.to_str().unwrap())]);
    run(async {
        let handle = open(&plugin, true).await.unwrap();
        server.change(|rules| rules.delay = Duration::from_millis(50));
        let reads: Vec<_> = (0..8)
            .map(|n| {
                let handle = Arc::clone(&handle);
                tokio::spawn(async move { read(&*handle, n * 512, 512).await })
            })
            .collect();
        for task in reads {
            task.await.unwrap().unwrap();
        }
        handle.close().await;
    });
    assert!(server.heads()[1..].iter().all(|head| head.contains("Cookie: session=42\r\n")), "{:?}", server.heads());
    assert!(fs::read_to_string(&jar).unwrap().contains("session\t42"));
    // Another process begins with them.
    server.reset_counts();
    let before = server.heads().len();
    run(reads_right(&plugin_for(&server, &[("cookiefile", jar.to_str().unwrap())])));
    assert!(server.heads()[before].contains("Cookie: session=42\r\n"), "{}", server.heads()[before]);
}

#[test]
fn without_cookie_parameters_the_servers_cookies_are_ignored() {
    let server = server(Rules { set_cookie: Some("session=42".into()), ..Rules::default() });
    run(reads_right(&plugin_for(&server, &[])));
    assert!(server.heads().iter().all(|head| !head.contains("Cookie:")), "{:?}", server.heads());
}

#[test]
fn writes_are_put_and_read_back() {
    let server = SlowServer::start(Content::memory(vec![0; 100_000]), Rules::default(), None).unwrap();
    let plugin = plugin_for(&server, &[]);
    run(async {
        let handle = open(&plugin, false).await.unwrap();
        assert!(handle.can().await.unwrap().write);
        write(&*handle, 1000, vec![7; 70_000]).await.unwrap();
        // By our own doing.
        server.change(|rules| rules.etag = Some("\"2\"".into()));
        let bytes = read(&*handle, 999, 70_002).await.unwrap();
        assert!(bytes[0] == 0 && bytes[70_001] == 0 && bytes[1..70_001].iter().all(|byte| *byte == 7));
        server.spoil([Fault::Status(507)]);
        let error = write(&*handle, 0, vec![1]).await.unwrap_err().to_string();
        assert_eq!(error, "curl: PUT of bytes 0-0: the server answers 507 (EIO)");
        write(&*handle, 0, vec![1]).await.unwrap();
        assert_eq!(read(&*handle, 0, 2).await.unwrap(), [1, 0]);
    });
    let put = server.heads().into_iter().find(|head| head.starts_with("PUT")).unwrap();
    assert!(put.contains("Content-Range: bytes 1000-70999/100000\r\n"), "{put}");
    assert!(!put.contains("Expect"), "{put}");
    let readonly = run(async { open(&plugin, true).await.unwrap().can().await.unwrap() });
    assert!(!readonly.write && readonly.multi_conn);
}

#[test]
fn tls_is_checked_and_the_error_says_why() {
    let dir = TestDir::new();
    let identity = Identity::create(&dir.0, "localhost").unwrap();
    let content = || Content::Pattern { seed: SEED, size: SIZE };
    let server = SlowServer::start(content(), Rules::default(), Some(&identity)).unwrap();
    let trust = identity.certificate.to_str().unwrap();
    run(reads_right(&plugin_for(&server, &[("cainfo", trust)])));
    run(reads_right(&plugin_for(&server, &[("sslverify", "false"), ("ssl-version", "tlsv1.3")])));
    let error = run(refused(&plugin_for(&server, &[])));
    assert!(error.contains("self-signed certificate (cainfo= or capath= says whom to trust"), "{error}");
    let other = Identity::create(&dir.0, "other.example").unwrap();
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
    assert!(head.starts_with("HEAD http://disks.example/disk.img "), "{head}");
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
fn a_disk_of_no_bytes_is_one() {
    let server =
        SlowServer::start(Content::memory(Vec::new()), Rules { head: false, ..Rules::default() }, None).unwrap();
    run(async { assert_eq!(open(&plugin_for(&server, &[]), true).await.unwrap().get_size().await.unwrap(), 0) });
}

#[test]
fn mistakes_in_parameters_are_named() {
    let url = ("url", "http://localhost/disk.img");
    for (params, error) in [
        (&[][..], "curl: what to serve has to be given: [url=]URL"),
        (&[("url", "ftp://x/y")], "url=ftp://x/y: only http and https are served, not ftp"),
        (&[("url", "file:///x")], "url=file:///x: only http and https are served: for a file use the file plugin"),
        (&[("url", "disk.img")], "url=disk.img: is not a URL: http://HOST/PATH or https://HOST/PATH"),
        (&[("url", "http:///x")], "url=http:///x: names no host"),
        (&[("url", "http://x/\n")], "url: contains control characters"),
        (&[url, ("colour", "red")], "curl: unknown parameter 'colour' (rbdkit curl --help lists those it has)"),
        (&[url, ("timeout", "-1")], "timeout=-1: is not a whole number"),
        (&[url, ("connections", "0")], "connections=0: has to be from 1 to 1024"),
        (&[url, ("password", "-2")], "password: the descriptor must not be standard input, output or error"),
        (&[url, ("password", "+/no/such")], "password: cannot open /no/such: No such file or directory (os error 2)"),
        (
            &[url, ("header", "a: b"), ("header-script", "x")],
            "curl: header= and header-script= cannot be used at the same time",
        ),
        (&[url, ("cookie-script-renew", "5")], "curl: cookie-script-renew= cannot be used without cookie-script="),
        (&[url, ("protocols", "")], "protocols=: an empty list of protocols is not allowed"),
        (
            &[url, ("protocols", "http,gpher")],
            "protocols=http,gpher: 'gpher' is not the name of a protocol (of use here are http and https)",
        ),
        (&[url, ("protocols", "https,ftp")], "curl: protocols= does not allow the protocol of url="),
        (&[url, ("ssl-version", "sslv3")], "ssl-version=sslv3: is broken and no longer spoken: tlsv1.2 or tlsv1.3"),
        (&[url, ("cainfo", "/no/such")], "cainfo=/no/such: No such file or directory (os error 2)"),
    ] {
        assert_eq!(config_error(params), error);
    }
    for params in [
        &[url, ("protocols", "ftp,http"), ("cookiefile", ""), ("cainfo", ""), ("tcp-keepalive", "true")][..],
        &[url, ("tcp-nodelay", "0"), ("http-version", "1.1"), ("tls13-ciphers", "TLS_AES_128_GCM_SHA256")],
        &[("url", "HTTPS://localhost"), ("ssl-cipher-list", "ECDHE+AESGCM"), ("unix-socket-path", "x")],
    ] {
        configured(params).unwrap();
    }
}

#[test]
fn a_unix_socket_is_an_address_too() {
    use std::io::{Read, Write};
    let dir = TestDir::new();
    let path = dir.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1000];
        assert!(stream.read(&mut head).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\nAccept-Ranges: bytes\r\n\r\n").unwrap();
    });
    let path: &Path = &path;
    let plugin = serving(&[("url", "http://localhost/x"), ("unix-socket-path", path.to_str().unwrap())]);
    run(async { assert_eq!(open(&plugin, true).await.unwrap().get_size().await.unwrap(), 4096) });
    thread.join().unwrap();
}
