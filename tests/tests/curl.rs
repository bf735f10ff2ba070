//! Remote disks through the program: the curl plugin with the filters that make it bearable, over a server that is slow and breaks to order.

use std::path::Path;
use std::time::Duration;

use rbdkit_slow_server::{Chances, Content, Fault, Identity, Rules, SlowServer};
use rbdkit_tests::{Launch, Rng, Server, TempDir, nbdsh, seed, tool};

const SEED: u64 = 5;
const SIZE: u64 = 96 << 20;
const SERIAL: [&str; 3] = ["--connections=1", "--requests=1", "--request-size=65536"];

fn slow(size: u64, delay: u64) -> SlowServer {
    let rules = Rules { delay: Duration::from_millis(delay), ..Rules::default() };
    SlowServer::start(Content::Pattern { seed: SEED, size }, rules, None).expect("the slow server")
}

fn launch(filters: &[&str], source: &SlowServer) -> Launch {
    let url = format!("{}/disk.img", source.url());
    Launch::new(["-r"]).args(filters.iter().map(|name| format!("--filter={name}"))).args(["curl", &url])
}

fn copy(server: &Server, to: &Path, options: &[&str]) {
    tool("nbdcopy", options.iter().copied().chain([server.uri().as_str(), to.to_str().expect("a name in UTF-8")])).ok();
}

fn is_the_disk(path: &Path, size: u64) {
    let bytes = std::fs::read(path).expect("the copy");
    assert_eq!(bytes.len() as u64, size);
    let mut expected = vec![0; bytes.len()];
    Content::Pattern { seed: SEED, size }.read(&mut expected, 0).expect("the pattern");
    let difference = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(difference, None, "the first byte that differs");
}

/// A read of 512 bytes that is to fail with this errno, and another one that is not.
fn fails_then_works(server: &Server, errno: &str) {
    let script = format!(
        "h.connect_uri(uri)\nassert fails(lambda: h.pread(512, 0)) == '{errno}'\nassert len(h.pread(512, 512)) == 512"
    );
    nbdsh(&server.uri(), &script).ok();
}

#[test]
fn a_copy_is_exact_and_fetches_each_byte_once() {
    for stack in [&["readahead", "cache"][..], &["readahead", "cow"]] {
        let source = slow(SIZE, 1);
        let mut launch = launch(stack, &source);
        if stack.contains(&"cow") {
            launch = launch.arg("cow-on-cache=true");
        }
        let server = launch.start();
        let dir = TempDir::new();
        copy(&server, &dir.join("copy"), &SERIAL);
        is_the_disk(&dir.join("copy"), SIZE);
        let bytes = source.counts().bytes;
        assert!((SIZE..=SIZE + SIZE / 50).contains(&bytes), "{stack:?}: {bytes} bytes for {SIZE}");
    }
}

#[test]
fn reading_ahead_hides_the_sources_latency() {
    // So slow that it is the source that is waited for: without reading ahead the copy takes 1536 times as long.
    let source = slow(SIZE, 100);
    let server = launch(&["readahead", "cache"], &source).start();
    let dir = TempDir::new();
    copy(&server, &dir.join("copy"), &SERIAL);
    is_the_disk(&dir.join("copy"), SIZE);
    assert!(source.counts().at_once >= 8, "{:?}", source.counts());
    assert!(source.counts().transfers < 200, "{:?}", source.counts());
}

#[test]
fn a_scan_fetches_the_whole_disk_once() {
    let source = slow(SIZE, 10);
    let server = launch(&["scan", "cache"], &source).start();
    let dir = TempDir::new();
    copy(&server, &dir.join("copy"), &SERIAL);
    is_the_disk(&dir.join("copy"), SIZE);
    let counts = source.counts();
    assert!(counts.transfers < 200 && counts.bytes <= SIZE + SIZE / 50, "{counts:?}");
}

#[test]
fn random_reads_fetch_hardly_more_than_what_is_read() {
    let source = slow(SIZE, 0);
    let server = launch(&["readahead", "cache"], &source).start();
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let offsets: Vec<String> = (0..500).map(|_| (rng.below(SIZE / 4096) * 4096).to_string()).collect();
    nbdsh(
        &server.uri(),
        &format!("h.connect_uri(uri)\nfor offset in [{}]:\n    h.pread(4096, offset)", offsets.join(",")),
    )
    .ok();
    let bytes = source.counts().bytes;
    assert!(bytes <= 500 * 4096 * 110 / 100, "{bytes} bytes");
}

#[test]
fn memory_stays_bounded_however_much_is_read() {
    let size = 1 << 30;
    let source = slow(size, 0);
    let server = launch(&["readahead", "cache"], &source).arg("cache-max-size=64M").start();
    tool("nbdcopy", [server.uri().as_str(), "null:"]).ok();
    let peak = server.proc_status("VmHWM:") << 10;
    assert!(peak < 256 << 20, "{peak} bytes at the peak");
}

#[test]
fn with_retry_a_copy_survives_a_server_that_goes_away() {
    let source = slow(SIZE, 1);
    let server = launch(&["readahead", "cache", "retry"], &source).args(["retry-delay=100ms", "retries=10"]).start();
    let dir = TempDir::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            source.wait_until("the copy is under way", |counts| counts.bytes > SIZE / 4);
            source.pause();
            server.wait_for_log("opening the layer below again failed");
            source.resume().expect("the same port");
        });
        copy(&server, &dir.join("copy"), &SERIAL);
    });
    is_the_disk(&dir.join("copy"), SIZE);
}

#[test]
fn without_retry_the_client_gets_an_error_and_the_next_request_works() {
    let source = slow(1 << 20, 0);
    let server = launch(&[], &source).start();
    source.spoil([Fault::Status(503)]);
    fails_then_works(&server, "EIO");
    server.wait_for_log("curl: GET of bytes 0-511: the server answers 503: it is too busy");
}

#[test]
fn with_retry_request_every_fault_by_chance_is_survived() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    for filter in ["retry-request", "retry"] {
        let chances = Chances { seed, reset: 50, burst: 10, wrong_range: 30, short: 30 };
        let rules = Rules { chances: Some(chances), ..Rules::default() };
        let content = Content::Pattern { seed: SEED, size: SIZE };
        let source = SlowServer::start(content, rules, None).expect("the slow server");
        let parameters = match filter {
            "retry" => ["retries=20", "retry-delay=1ms", "retry-exponential=no"],
            _ => ["retry-request-retries=20", "retry-request-delay=1ms", "retry-request-open=true"],
        };
        let server = launch(&["readahead", "cache", filter], &source).args(parameters).start();
        let dir = TempDir::new();
        copy(&server, &dir.join("copy"), &[]);
        is_the_disk(&dir.join("copy"), SIZE);
    }
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused_with_the_reason() {
    let dir = TempDir::new();
    let identity = Identity::create(dir.path(), "localhost").expect("a certificate");
    let content = Content::Pattern { seed: SEED, size: 1 << 20 };
    let source = SlowServer::start(content, Rules::default(), Some(&identity)).expect("the slow server");
    let server = launch(&[], &source).start();
    tool("nbdinfo", [server.uri()]).fails();
    server.wait_for_log("self-signed certificate (cainfo= or capath= says whom to trust");
    let server = launch(&[], &source).path("cainfo", &identity.certificate).start();
    copy(&server, &dir.join("copy"), &[]);
    is_the_disk(&dir.join("copy"), 1 << 20);
}
