//! Measures what the program promises of the machine's resources.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rbdkit_tests::server::{filter, is_nbdkit};
use rbdkit_tests::{Launch, Server, TempDir};

/// These tests measure, so only one of them runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Sends requests of every kind, aligned and not.
fn exercise(server: &Server) {
    let mut client = server.client();
    let mut nth = 0u8;
    for offset in (0..4 << 20).step_by(300_000) {
        nth += 1;
        client.write(offset, &vec![nth; 100_000]).expect("a write");
        assert_eq!(client.read(offset + 1, 70_000).expect("a read"), vec![nth; 70_000]);
        client.zero(offset + 10, 5000, 0).expect("zero");
        client.trim(offset + 50_000, 20_000).expect("trim");
        client.cache(offset, 300_000).expect("cache");
        client.extents(offset, 300_000, 0).expect("extents");
    }
    for offset in (0..4 << 20).step_by(65536) {
        client.read(offset, 65536).expect("a read");
    }
    client.flush().expect("a flush");
    client.disconnect();
}

/// The number in front of `what` in the last line of the log that begins with the filter's name and
/// contains `what`.
fn counter(log: &str, filter: &str, what: &str) -> u64 {
    let line = log
        .lines()
        .rfind(|line| line.contains(&format!("{filter}: ")) && line.contains(what))
        .unwrap_or_else(|| panic!("no line of {filter} with '{what}' in\n{log}"));
    let before = line.split(what).next().unwrap_or_default();
    let number = before.split_whitespace().last().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no number before '{what}' in {line}"))
}

#[test]
fn no_payload_byte_crosses_into_a_filter_that_does_not_ask_for_it() {
    if is_nbdkit() {
        return;
    }
    for filters in [
        &["nofilter"][..],
        &["offset"],
        &["blocksize-policy"],
        &["delay"],
        &["error"],
        &["exportname"],
        &["ip"],
        &["limit"],
        &["multi-conn"],
        &["log"],
        &["count"],
        &["readahead"],
        &["cow"],
        &["cache"],
        &["readahead", "cow", "cache", "offset", "nofilter"],
        &["protect", "--filter-param=protect:protect=5M-6M"],
        &["truncate", "--filter-param=truncate:truncate=9M"],
        &["map", "--filter-param=map:map=100000-199999:300000", "--filter-param=map:map=300000-399999:100000"],
        &["nozero", "--filter-param=nozero:zeromode=emulate"],
        &["swab", "--filter-param=swab:swab-bits=8"],
        &["blocksize", "swab"],
        &[
            "fua",
            "noextents",
            "nocache",
            "--filter-param=nocache:cachemode=nop",
            "noparallel",
            "readonly",
            "rotational",
        ],
    ] {
        let (parameters, filters): (Vec<&str>, Vec<&str>) = filters.iter().partition(|word| word.starts_with("--"));
        let options = filters.iter().map(|name| format!("--filter={name}"));
        // A filter that makes the disk read-only does so only while this file exists.
        let file = filters.contains(&"readonly").then_some("readonly-file=/nonexistent");
        let server = Launch::new(["-v"]).args(options).args(parameters).arg("memory").arg("8M").args(file).start();
        exercise(&server);
        let log = server.stop().stderr;
        for filter in &filters {
            assert!(counter(&log, filter, " calls") > 0, "{filter} was never entered");
            assert_eq!(counter(&log, filter, " bytes crossed"), 0, "{filters:?}: {filter}");
            assert_eq!(counter(&log, filter, " faults"), 0, "{filters:?}: {filter}");
        }
    }
}

#[test]
fn an_idle_server_with_three_filters_stays_under_64_mib() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start(["--filter=readahead", "--filter=cow", "--filter=cache", "memory", "64M"]);
    let at_first = server.resident();
    exercise(&server);
    let mut client = server.client();
    client.read(0, 512).expect("a read");
    let after = server.resident();
    println!("resident: {} KiB at first, {} KiB after 4 MiB were written and read", at_first >> 10, after >> 10);
    assert!(at_first < 64 << 20, "{at_first} bytes");
    // The overlay and the cache are files; the disk itself takes 4 MiB of memory.
    assert!(after < (64 + 8) << 20, "{after} bytes after use");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_server_with_three_compiled_filters_listens_within_100_ms() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = TempDir::new();
    let start = |by_file: bool| {
        let mut launch = Launch::new(["-r"]).env("XDG_CACHE_HOME", dir.path());
        for name in ["readahead", "cow", "cache"] {
            launch = match by_file && !is_nbdkit() {
                true => launch.arg("--wasm-filter").arg(filter(name)),
                false => launch.arg(format!("--filter={name}")),
            };
        }
        launch.arg("memory").arg("64M").start().start_time()
    };
    for by_file in [false, true] {
        let first = start(by_file);
        let warm = median((0..11).map(|_| start(by_file)).collect());
        println!("listening after {first:?} at first, {warm:?} with the code cached (median of 11)");
        assert!(warm < Duration::from_millis(100), "{warm:?}");
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start(["--filter=readahead", "--filter=cow", "--filter=cache", "memory", "64M"]);
    let visit = |count: usize| {
        for _ in 0..count {
            let mut client = server.client();
            client.write(0, &[1; 4096]).expect("a write");
            client.read(0, 4096).expect("a read");
            client.disconnect();
        }
    };
    visit(200);
    let (memory, files) = (server.resident(), server.open_files());
    visit(1000);
    server.wait_until("their files are closed", |server| server.open_files() <= files);
    let grown = server.resident().saturating_sub(memory);
    println!("{} KiB more after a thousand connections", grown >> 10);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[test]
fn ten_thousand_requests_leave_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start(["--filter=readahead", "--filter=cow", "--filter=cache", "memory", "16M"]);
    let mut client = server.client();
    let mut work = |count: u64| {
        for nth in 0..count {
            let offset = (nth * 7919 * 512) % (15 << 20);
            client.write(offset, &[nth as u8; 5000]).expect("a write");
            client.read(offset, 5000).expect("a read");
            client.extents(offset, 1 << 20, 0).expect("extents");
        }
    };
    work(5000);
    let memory = server.resident();
    work(10_000);
    let grown = server.resident().saturating_sub(memory);
    println!("{} KiB more after thirty thousand requests", grown >> 10);
    assert!(grown < 8 << 20, "{grown} bytes more");
}
