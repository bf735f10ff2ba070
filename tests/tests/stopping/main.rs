//! A server ends when it is told to, whatever it does: within 5 s of a signal unless the plugin
//! writes, and at once after a second signal. And a client that leaves gives back what it held.

#[path = "../untrusted/guest.rs"]
#[allow(dead_code, reason = "the tests of untrusted filters use all of it")]
mod guest;
mod leaving;
mod states;

use std::time::{Duration, Instant};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Launch, TempDir, wait};
use rustix::process::Signal;

use states::{STATES, State};

/// The time that the server promises, and as much again for a machine that runs all tests at once.
const ORDERLY: Duration = Duration::from_secs(5 + 5);

/// An end at once takes a fraction of a second. An orderly end takes more than a second in most of
/// these states; its exit status is another one.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A server that ends in this time with its ordinary status has not waited for what hangs.
const BEFORE_THE_SECOND: Duration = Duration::from_millis(500);

/// Runs a test for each state, at the same time: they mostly wait.
fn for_each_state(test: fn(&State)) {
    std::thread::scope(|threads| {
        let tests: Vec<_> = STATES.iter().map(|state| (state.name, threads.spawn(move || test(state)))).collect();
        let failed: Vec<_> =
            tests.into_iter().filter_map(|(name, test)| test.join().is_err().then_some(name)).collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
}

#[test]
fn a_signal_ends_the_server_within_5_s_in_every_state() {
    for_each_state(|state| {
        let entered = (state.enter)();
        let began = Instant::now();
        entered.server.signal(Signal::TERM);
        let (took, outcome) = entered.end(began);
        println!("{}: {took:?} {}", state.name, outcome.status);
        assert!(took < ORDERLY, "{}: {took:?}\n{}", state.name, outcome.stderr);
        assert_eq!(outcome.status.code(), Some(state.status), "{}:\n{}", state.name, outcome.stderr);
    });
}

#[test]
fn a_second_signal_ends_the_server_at_once_in_every_state() {
    for_each_state(|state| {
        if state.is_over_at_once {
            // There is no time for a second signal.
            return;
        }
        let entered = (state.enter)();
        entered.server.signal(Signal::TERM);
        if let Some(line) = state.after_signal {
            entered.server.wait_for_log(line);
        }
        let began = Instant::now();
        entered.server.signal(Signal::HUP);
        let (took, outcome) = entered.end(began);
        println!("{}: {took:?} {}", state.name, outcome.status);
        assert!(took < AT_ONCE, "{}: {took:?}\n{}", state.name, outcome.stderr);
        let code = outcome.status.code();
        if code == Some(state.status) && took < BEFORE_THE_SECOND {
            // It had ended when the second signal came.
            return;
        }
        // The order in which the server receives the two is not defined.
        assert!(code == Some(129) || code == Some(143), "{}: {code:?}\n{}", state.name, outcome.stderr);
        assert!(outcome.stderr.contains("a second signal"), "{}:\n{}", state.name, outcome.stderr);
    });
}

#[test]
fn a_write_that_is_under_way_is_waited_for_and_a_second_signal_does_not_wait() {
    let serve = || {
        let dir = TempDir::new();
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a fifo");
        let write = format!("pwrite=cat >/dev/null; touch {0}/asked; read line <{0}/fifo", dir.path().display());
        let server = Launch::new(["-v", "eval", "get_size=echo 1M", "can_write=exit 0", &write]).start();
        let mut client = server.client();
        client.submit(cmd::WRITE, 0, 0, 512, &[1; 512]).expect("a write");
        wait::until("the script is asked", || dir.join("asked").exists());
        (dir, server, client)
    };
    let (dir, server, mut client) = serve();
    server.signal(Signal::TERM);
    server.wait_for_log("stopping");
    // Longer than anything else than a write is waited for.
    #[expect(clippy::disallowed_methods, reason = "nothing happens in this time, which is what is tested")]
    std::thread::sleep(Duration::from_millis(3500));
    std::fs::write(dir.join("fifo"), "go on\n").expect("the fifo");
    assert!(client.receive().expect("a reply").result.is_ok());
    assert_eq!(server.wait().status.code(), Some(0));

    let (_dir, server, _client) = serve();
    server.signal(Signal::TERM);
    server.wait_for_log("stopping");
    let began = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().status.code(), Some(143));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[test]
fn a_cache_over_filters_that_wait_is_written_back_when_the_server_stops() {
    const BLOCKS: u64 = 8;
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk", 1 << 20);
    let path = disk.display();
    // The first write fails, and retry waits before the next.
    let write = format!(
        "pwrite=[ -e {dir}/failed ] || {{ cat >/dev/null; touch {dir}/failed; echo EIO >&2; exit 1; }}; \
         dd of={path} oflag=seek_bytes seek=$4 conv=notrunc status=none",
        dir = dir.path().display(),
    );
    let file = format!("file={path}");
    let stacks: [&[&str]; 2] = [
        &["--filter=delay", "file", &file, "wdelay=1000"],
        &["--filter=retry", "eval", "retry-delay=1000", "get_size=echo 1M", "can_write=exit 0", "pread=exit 1", &write],
    ];
    for stack in stacks {
        std::fs::write(&disk, [0; 1 << 20]).expect("an empty disk");
        let server = Launch::new(["--filter=cache"]).args(stack).start();
        let mut client = server.client();
        for block in 0..BLOCKS {
            client.write(block * (128 << 10), &[1; 64 << 10]).expect("a write");
        }
        let outcome = server.stop();
        let written = std::fs::read(&disk).expect("the disk").iter().filter(|byte| **byte == 1).count() as u64;
        assert_eq!(written, BLOCKS * (64 << 10), "{stack:?}\n{}", outcome.stderr);
        drop(client);
    }
}

#[test]
fn a_request_that_waits_in_a_filter_gets_eshutdown() {
    let server = Launch::new(["-v", "--filter=delay", "memory", "1M", "rdelay=1000"]).start();
    let mut client = server.client();
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a read");
    server.wait_for_log("delay: pread");
    server.signal(Signal::TERM);
    assert_eq!(client.receive().expect("a reply").result, Err(108));
    assert_eq!(server.wait().status.code(), Some(0));
}
