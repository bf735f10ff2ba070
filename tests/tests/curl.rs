//! Remote disks through the program: the curl plugin below the filters that make it fast and
//! reliable. The server is slow and fails on demand.

use std::path::Path;
use std::time::Duration;

use rbdkit_slow_server::{Chances, Content, Fault, Identity, Rules, SlowServer};
use rbdkit_tests::{Launch, Rng, Server, TempDir, free_port, nbdsh, seed, tool, wait};

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

/// Checks that a read of 512 bytes fails with this errno and that the next one succeeds.
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
    // The source is so slow that its delay is all that counts. Without readahead the copy would
    // wait 1536 times.
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
fn what_one_client_read_is_there_for_the_next_before_it_asks() {
    let source = slow(SIZE, 5);
    let dir = TempDir::new();
    let trace = format!("trace-file={}", dir.join("trace").display());
    let reads = "for n in range(200):\n    h.pread(4096, n * 7919 % 1500 * 65536)";
    let script = format!("h.connect_uri(uri)\n{reads}");
    let launch = || launch(&["prefetch", "cache"], &source).arg(&trace);
    let server = launch().start();
    nbdsh(&server.uri(), &script).ok();
    server.wait_for_log("recorded in trace-file=: ranges 200, bytes 13107200");
    server.stop();

    let server = launch().start();
    let fetched = source.counts().bytes + 200 * 65536;
    let client = server.client();
    server.wait_until("the prefetches", |_| source.counts().bytes >= fetched);
    drop(client);
    nbdsh(&server.uri(), &script).ok();
    // Each connection asks the source whether it is still the same, with a byte.
    let more = source.counts().bytes - fetched;
    assert!(more < 100, "{more} bytes: the second client's reads come from the cache");
}

#[test]
fn random_reads_fetch_hardly_more_than_they_read() {
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
            server.wait_for_log("reopening the layer below failed");
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
fn an_invalid_certificate_is_refused_with_the_reason() {
    let dir = TempDir::new();
    let identity = Identity::create(dir.path(), "localhost").expect("a certificate");
    let expired = identity.expired().expect("an old certificate");
    let other = Identity::create(dir.path(), "other.example").expect("a certificate");
    for (identity, trusted, why) in [
        (&identity, false, "self-signed certificate (cainfo= or capath= says whom to trust"),
        (&expired, true, "certificate has expired (cainfo= or capath= says whom to trust"),
        (&other, true, "no alternative certificate subject name matches target host name 'localhost'"),
    ] {
        let content = Content::Pattern { seed: SEED, size: 1 << 20 };
        let source = SlowServer::start(content, Rules::default(), Some(identity)).expect("the slow server");
        let mut refusing = launch(&[], &source);
        if trusted {
            refusing = refusing.path("cainfo", &identity.certificate);
        }
        let server = refusing.start();
        tool("nbdinfo", [server.uri()]).fails();
        server.wait_for_log(why);
        assert_eq!(source.counts().requests, 0, "{why}");
        // A user who asks for it connects without a check.
        let server = launch(&[], &source).arg("sslverify=false").start();
        copy(&server, &dir.join("copy"), &[]);
        is_the_disk(&dir.join("copy"), 1 << 20);
    }
    let content = Content::Pattern { seed: SEED, size: 1 << 20 };
    let source = SlowServer::start(content, Rules::default(), Some(&identity)).expect("the slow server");
    let server = launch(&[], &source).path("cainfo", &identity.certificate).start();
    copy(&server, &dir.join("copy"), &[]);
    is_the_disk(&dir.join("copy"), 1 << 20);
}

/// A web server that speaks HTTP/2. It is killed when it is dropped.
struct Nginx {
    child: std::process::Child,
    port: u16,
}

impl Nginx {
    /// Serves the directory, so slowly that requests overlap. Its log has a line for each request:
    /// protocol, connection, status, and in seconds when it ended and how long it took.
    fn start(dir: &TempDir, identity: &Identity) -> Nginx {
        let port = free_port();
        let root = dir.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/tmp-{kind};"))
            .join("\n");
        // When started as root it would serve as a user who cannot read the test's files.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "daemon off; master_process off; {user} pid {root}/nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
             log_format told '$server_protocol $connection $status $msec $request_time';\n\
             access_log {root}/access.log told;\n{temporary}\n\
             server {{\n\
             listen 127.0.0.1:{port} ssl http2;\n\
             ssl_certificate {};\nssl_certificate_key {};\n\
             root {root}; limit_rate 2m;\n}}\n}}\n",
            identity.certificate.display(),
            identity.key.display(),
        );
        let config = dir.file("nginx.conf", config.as_bytes());
        let mut command = std::process::Command::new("/usr/sbin/nginx");
        command.arg("-e").arg("stderr").arg("-c").arg(config).stdin(std::process::Stdio::null());
        let child = command.spawn().expect("nginx: apt-get install nginx-light");
        let mut nginx = Nginx { child, port };
        wait::until("nginx listens", || {
            assert!(nginx.child.try_wait().expect("nginx").is_none(), "nginx does not start");
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn requests_share_one_connection_of_http_2() {
    const SIZE: u64 = 16 << 20;
    let dir = TempDir::new();
    let identity = Identity::create(dir.path(), "localhost").expect("a certificate");
    let mut disk = vec![0; SIZE as usize];
    Content::Pattern { seed: SEED, size: SIZE }.read(&mut disk, 0).expect("the pattern");
    dir.file("disk.img", &disk);
    let nginx = Nginx::start(&dir, &identity);
    let url = format!("https://localhost:{}/disk.img", nginx.port);
    let server = Launch::new(["-r", "curl", &url]).path("cainfo", &identity.certificate).start();
    copy(&server, &dir.join("copy"), &["--connections=1", "--requests=16", "--request-size=1048576"]);
    is_the_disk(&dir.join("copy"), SIZE);
    let log = || std::fs::read_to_string(dir.join("access.log")).unwrap_or_default();
    server.wait_until("all requests are in the log", |_| log().lines().count() >= 17);
    let log = log();
    let requests: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    assert!(requests.iter().all(|fields| fields[0] == "HTTP/2.0" && fields[1] == requests[0][1]), "{log}");
    // Counts for each request how many others were under way when it began.
    let times = requests.iter().filter(|fields| fields[2] == "206").map(|fields| {
        let seconds = |field: &str| field.parse::<f64>().expect("seconds");
        (seconds(fields[3]) - seconds(fields[4]), seconds(fields[3]))
    });
    let times: Vec<(f64, f64)> = times.collect();
    let at_once = times.iter().map(|(at, _)| times.iter().filter(|(from, to)| from <= at && at < to).count()).max();
    assert!(at_once >= Some(8), "{at_once:?} at once:\n{log}");
}

#[test]
fn a_farm_of_servers_behind_one_url_is_copied_also_with_retry() {
    for filters in [&[][..], &["retry"], &["readahead", "cache", "retry"]] {
        for habit in ["tag-of-farm", "date-of-farm", "tag-weak-sometimes", "range-short,encoding-aws-chunked"] {
            let source = slow(1 << 20, 0);
            source.change(|rules| rules.habits = habit.split(',').map(str::to_string).collect());
            let server = launch(filters, &source).arg("check-changes=false").start();
            let dir = TempDir::new();
            copy(&server, &dir.join("copy"), &["--request-size=65536"]);
            is_the_disk(&dir.join("copy"), 1 << 20);
        }
    }
}

#[test]
fn a_client_is_told_how_to_serve_a_farm() {
    let source = slow(1 << 20, 0);
    source.change(|rules| rules.habits = vec!["tag-of-farm".into()]);
    let server = launch(&[], &source).start();
    nbdsh(&server.uri(), "h.connect_uri(uri)\nassert fails(lambda: h.pread(512, 0)) == 'EIO'").ok();
    server.wait_for_log("(check-changes=false serves it all the same");
}

#[test]
fn a_verbose_log_shows_no_secret() {
    let source = slow(1 << 20, 0);
    let url = format!("{}/disk.img?token=SECRET&habit=", source.url().replace("//", "//me:SECRET@"));
    for habit in ["", "redirect-ftp", "tag-of-farm", "status-503", "redirect-token"] {
        let server = Launch::new(["-v", "-r", "curl", &format!("{url}{habit}")])
            .args(["cookie=SECRET", "header=X-Token: SECRET", "cookiefile=", "proxy-password=SECRET"])
            .args(["header=Authorization: Bearer SECRET", "user-agent=x"])
            .start();
        tool("nbdinfo", ["--size", server.uri().as_str()]);
        nbdsh(&server.uri(), "try:\n    h.connect_uri(uri)\n    h.pread(512, 0)\nexcept nbd.Error: pass").ok();
        let outcome = server.stop();
        assert!(outcome.status.success());
        assert!(!outcome.stderr.contains("SECRET"), "{habit}: {}", outcome.stderr);
    }
}

#[test]
fn a_refused_start_shows_no_secret() {
    for parameters in [
        &["ftp://me:SECRET@host/disk?SECRET"][..],
        &["http://me:SECRET@host:99999/disk"],
        &["me:SECRET@host/disk"],
        &["http://host/disk", "proxy=ftp://me:SECRET@host"],
        &["http://host/disk", "header=SECRET"],
        &["http://host/disk", "cookie=a\nX-Evil: SECRET"],
        &["http://host/disk", "password=-SECRET"],
    ] {
        let outcome = Launch::new(["-v", "-r", "curl"]).args(parameters).try_start().err().expect("a refusal");
        assert!(!outcome.stderr.contains("SECRET"), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.matches("rbdkit: error: ").count(), 1, "{}", outcome.stderr);
    }
}
