//! The filters retry and retry-request over layers below that fail, and that are restarted.

use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool};

/// A server of scripts that count in files of the directory.
fn scripts(dir: &TempDir, filter: &str, more: &[&str]) -> Launch {
    let count = dir.join("count");
    Launch::new([format!("--filter={filter}")])
        .args(["eval", "can_write=exit 0", "can_zero=exit 0", "can_trim=exit 0"])
        .args(["can_flush=exit 0", "can_extents=exit 0", "can_cache=echo native", "can_fast_zero=exit 0"])
        .args(more)
        .args(if more.iter().any(|script| script.starts_with("get_size=")) { None } else { Some("get_size=echo 1M") })
        .env("COUNT", &count)
}

/// A script that fails with this error the first two times, and then does `work`. It counts its
/// attempts.
fn twice(method: &str, error: &str, work: &str) -> String {
    let count = format!("$COUNT.{method}");
    format!("{method}=echo >>{count}; [ $(wc -l <{count}) -gt 2 ] || {{ echo {error} no >&2; exit 1; }}; {work}")
}

fn attempts(dir: &TempDir, method: &str) -> usize {
    let text = std::fs::read_to_string(dir.join(&format!("count.{method}")));
    text.unwrap_or_default().lines().count()
}

const FILTERS: [(&str, &str); 2] = [("retry", "retry-delay=1ms"), ("retry-request", "retry-request-delay=1ms")];

#[test]
fn every_error_is_repeated_in_every_operation() {
    let operations = [
        ("pread", "head -c $3 /dev/zero", "assert h.pread(512, 0) == bytes(512)"),
        ("pwrite", "cat >/dev/null", "h.pwrite(bytes(512), 0)"),
        ("flush", ":", "h.flush()"),
        ("trim", ":", "h.trim(512, 0)"),
        ("zero", ":", "h.zero(512, 0)"),
        ("cache", ":", "h.cache(512, 0)"),
        ("extents", "echo $4 $3", "h.block_status(512, 0, lambda *a: 0)"),
    ];
    let calls: Vec<&str> = operations.iter().map(|(_, _, call)| *call).collect();
    let client = format!("h.add_meta_context('base:allocation')\nh.connect_uri(uri)\n{}", calls.join("\n"));
    for (filter, delay) in FILTERS {
        for errors in [["ESHUTDOWN"; 3], ["EROFS", "EPERM", "EINVAL"], ["EIO", "ENOSPC", "ENOMEM"]] {
            let dir = TempDir::new();
            let scripts_of = |(n, (method, work, _)): (usize, &(&str, &str, &str))| twice(method, errors[n % 3], work);
            let all: Vec<String> = operations.iter().enumerate().map(scripts_of).collect();
            let more: Vec<&str> = all.iter().map(String::as_str).chain([delay]).collect();
            let server = scripts(&dir, filter, &more).start();
            nbdsh(&server.uri(), &client).ok();
            for (method, _, _) in operations {
                assert_eq!(attempts(&dir, method), 3, "{filter} {method} {errors:?}");
            }
        }
    }
}

#[test]
fn enotsup_is_repeated_where_it_is_no_answer() {
    for (filter, delay) in FILTERS {
        let dir = TempDir::new();
        let script = twice("pread", "ENOTSUP", "head -c $3 /dev/zero");
        let server = scripts(&dir, filter, &[&script, delay]).start();
        nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pread(512, 0)").ok();
        assert_eq!(attempts(&dir, "pread"), 3, "{filter}");
    }
}

#[test]
fn enotsup_is_the_answer_to_a_fast_zero_request() {
    for (filter, delay) in FILTERS {
        let dir = TempDir::new();
        let script = twice("zero", "ENOTSUP", ":");
        let server = scripts(&dir, filter, &[&script, delay]).start();
        let client = "h.connect_uri(uri)\nassert fails(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)) == 'ENOTSUP'";
        nbdsh(&server.uri(), client).ok();
        assert_eq!(attempts(&dir, "zero"), 1, "{filter}");
    }
}

#[test]
fn the_first_open_and_the_size_are_repeated() {
    for (filter, delay) in FILTERS {
        for (method, work) in [("open", "echo handle"), ("get_size", "echo 1M")] {
            let dir = TempDir::new();
            let script = twice(method, "ESHUTDOWN", work);
            let server = scripts(&dir, filter, &[&script, "pread=head -c $3 /dev/zero", delay]).start();
            nbdsh(&server.uri(), "h.connect_uri(uri)\nassert h.get_size() == 1 << 20\nh.pread(512, 0)").ok();
            assert!(attempts(&dir, method) >= 3, "{filter} {method}");
        }
    }
}

#[test]
fn a_layer_that_is_reopened_read_only_refuses_writes_at_once() {
    let dir = TempDir::new();
    let script = twice("pread", "EIO", "head -c $3 /dev/zero");
    let server = scripts(&dir, "retry", &[&script, "pwrite=cat >/dev/null", "retry-delay=1ms", "retry-readonly=true"]);
    let server = server.start();
    let client = "h.connect_uri(uri)\nh.pwrite(bytes(512), 0)\nh.pread(512, 0)\n\
                  assert fails(lambda: h.pwrite(bytes(512), 0)) == 'EPERM'";
    nbdsh(&server.uri(), client).ok();
}

/// Starts an upstream and lets `link` lead to its socket. While the file `stopping` exists it
/// answers as a server does that is about to stop.
fn upstream(link: &Path, stopping: &Path) -> Server {
    let answers = ["error=ESHUTDOWN", "error-rate=100%"];
    let server = Launch::new(["--filter=error", "pattern", "64M"]).args(answers).path("error-file", stopping).start();
    let _ = std::fs::remove_file(link);
    std::os::unix::fs::symlink(server.socket(), link).expect("a symbolic link");
    server
}

#[test]
fn a_request_survives_an_upstream_that_is_stopped_and_started_again() {
    let dir = TempDir::new();
    let (link, stopping) = (dir.join("upstream"), dir.join("stopping"));
    let first = upstream(&link, &stopping);
    let retry = ["retry-delay=100ms", "retry-exponential=false", "retries=600"];
    let server = Launch::new(["--filter=retry", "nbd"]).path("socket", &link).args(retry).start();
    let mut client = server.client();
    let before = client.read(4096, 512).expect("a read from the first upstream");
    std::fs::write(&stopping, "").expect("a file");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(4096, 512));
        server.wait_for_log("a request failed (eshutdown)");
        first.kill();
        server.wait_for_log("reopening the layer below failed");
        std::fs::remove_file(&stopping).expect("the file");
        let _second = upstream(&link, &stopping);
        assert_eq!(reading.join().expect("the reader").expect("a read from the second upstream"), before);
    });
}

#[test]
fn a_client_that_leaves_ends_the_wait() {
    let dir = TempDir::new();
    let closed = dir.join("closed");
    let close = format!("close=echo >{}", closed.display());
    let fails = "pread=echo ESHUTDOWN no >&2; exit 1";
    let server = scripts(&dir, "retry", &[fails, &close, "retry-delay=100000"]).start();
    let mut client = server.client();
    client.submit(rbdkit_tests::raw::cmd::READ, 0, 0, 512, &[]).expect("a request");
    server.wait_for_log("a request failed");
    drop(client);
    server.wait_until("the connection to end", |_| closed.exists());
}

/// How long a stop may take on a busy machine. A server that waited for the filters' sleeps would
/// take 30 s.
const STOP: Duration = Duration::from_secs(25);

#[test]
fn a_stop_ends_the_waits_of_requests() {
    let dir = TempDir::new();
    let server = scripts(&dir, "retry", &["pread=echo EIO no >&2; exit 1", "retry-delay=100000"]).start();
    let mut client = server.client();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| client.read(0, 512));
        server.wait_for_log("a request failed");
        let began = Instant::now();
        server.stop();
        assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
        // The error is what the layer below said, and not that of the filter's own sleep.
        assert_eq!(reading.join().expect("the reader"), Err(5));
    });
}

#[test]
fn a_stop_ends_the_waits_of_opens() {
    let dir = TempDir::new();
    let server = scripts(&dir, "retry", &["open=echo ESHUTDOWN no >&2; exit 1", "retry-delay=100000"]).start();
    let uri = server.uri();
    std::thread::scope(|scope| {
        let client = scope.spawn(move || tool("nbdinfo", ["--size", &uri]));
        server.wait_for_log("opening the layer below failed");
        let began = Instant::now();
        server.stop();
        assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
        assert_ne!(client.join().expect("the client").code, 0);
    });
}
