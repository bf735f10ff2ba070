//! `--reload`: SIGHUP makes a running server serve with the new files of its filters.

#[path = "../untrusted/guest.rs"]
#[expect(dead_code, reason = "shared with the tests of hostile components, which use all of it")]
mod guest;
mod load;
mod refusals;
mod versions;

use std::path::Path;

use rbdkit_tests::raw::{Stream, go, opt, rep};
use rbdkit_tests::{Launch, Server, TempDir};
use rustix::process::{Pid, Signal, kill_process};
use versions::{State, filter, text, version_of};

/// The size of the disks.
const SIZE: u64 = 1 << 20;

/// The block that shows the version.
const BLOCK: u64 = SIZE - 4096;

/// Replaces a file in one step, as a build does that a reload may read at any time.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).expect("a file for the test");
    std::fs::rename(&new, path).expect("the file is replaced");
}

/// The lines about reloads that have ended, in the order in which they did.
fn reloads(server: &Server) -> Vec<String> {
    let ends = |line: &&str| line.contains(": reload: ") && !line.contains(": waits until ");
    server.stderr().lines().filter(ends).map(str::to_owned).collect()
}

/// Asks for a reload and waits for the lines of `files` filters. Returns them.
fn reload(server: &Server, files: usize) -> Vec<String> {
    let before = reloads(server).len();
    server.signal(Signal::HUP);
    server.wait_until("a line for each filter", |server| reloads(server).len() >= before + files);
    reloads(server).split_off(before)
}

/// What a new client is told of the export.
fn description(server: &Server) -> String {
    const DESCRIPTION: u16 = 2;
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::INFO, &go("", &[DESCRIPTION])).expect("INFO");
    let (last, replies) = stream.option_replies(opt::INFO).expect("replies");
    assert_eq!(last, rep::ACK);
    let text = replies.into_iter().find(|(kind, data)| *kind == rep::INFO && data[..2] == DESCRIPTION.to_be_bytes());
    String::from_utf8(text.expect("a description").1.split_off(2)).expect("a text")
}

/// Which version of a filter serves this client.
fn seen(client: &mut rbdkit_tests::Client, block: u64) -> String {
    let bytes = client.read(block, 512).expect("a read");
    String::from_utf8_lossy(&bytes[..text(0).len()]).into_owned()
}

/// A server with one filter, whose file is the first version.
fn serve(dir: &TempDir, component: &[u8]) -> Server {
    let file = dir.file("f.wasm", &version_of(component, 1));
    Launch::new(["--reload", "--wasm-filter"]).arg(&file).args(["memory", "1M"]).start()
}

#[test]
fn live_connections_of_a_stateless_and_of_a_replay_filter_move_to_the_new_version() {
    for state in [State::Stateless, State::Replay] {
        let (dir, component) = (TempDir::new(), filter("f", state).component(BLOCK));
        let server = serve(&dir, &component);
        let (mut one, mut other) = (server.client(), server.client());
        assert_eq!(seen(&mut one, BLOCK), text(1));
        replace(&dir.join("f.wasm"), &version_of(&component, 2));
        let lines = reload(&server, 1);
        assert!(lines[0].ends_with(": connections: 2 moved, 0 stay with the old version"), "{lines:?}");
        assert_eq!((seen(&mut one, BLOCK), seen(&mut other, BLOCK)), (text(2), text(2)), "{state:?}");
        assert_eq!(description(&server), text(2));
        assert!(reload(&server, 1)[0].ends_with("info: reload: f: unchanged"));
        drop((one, other));
        assert!(server.stop().status.success());
    }
}

#[test]
fn connections_whose_state_would_be_lost_stay_with_the_old_version_and_new_ones_get_the_new_one() {
    let (dir, component) = (TempDir::new(), filter("f", State::Lost).component(BLOCK));
    let server = serve(&dir, &component);
    let mut old = server.client();
    replace(&dir.join("f.wasm"), &version_of(&component, 2));
    let lines = reload(&server, 1);
    let end =
        "connections: 0 moved, 1 stay with the old version (their state is in an instance's memory (recovery: lost))";
    assert!(lines[0].ends_with(end), "{lines:?}");
    let mut new = server.client();
    assert_eq!((seen(&mut old, BLOCK), seen(&mut new, BLOCK)), (text(1), text(2)));
    // A third version waits until the first one is gone.
    replace(&dir.join("f.wasm"), &version_of(&component, 3));
    server.signal(Signal::HUP);
    let waits = "info: reload: f: waits until the version before the running one is not used any more: it is used by ";
    server.wait_for_log(&format!("{waits}connection "));
    assert_eq!((seen(&mut old, BLOCK), description(&server)), (text(1), text(2)));
    old.disconnect();
    server.wait_until("the reload that waited", |server| reloads(server).len() > 1);
    assert_eq!((seen(&mut new, BLOCK), description(&server)), (text(2), text(3)));
    new.disconnect();
    assert!(server.stop().status.success());
}

#[test]
fn without_the_option_sighup_ends_the_server() {
    let dir = TempDir::new();
    let component = filter("f", State::Stateless).component(BLOCK);
    let file = dir.file("f.wasm", &component);
    let server = Launch::new(["--wasm-filter"]).arg(&file).args(["memory", "1M"]).start();
    server.signal(Signal::HUP);
    assert!(server.wait().status.success());
}

#[test]
fn reloading_needs_a_filter_in_a_file() {
    let outcome = Launch::new(["--reload", "--filter=nofilter", "memory", "1M"]).try_start().err().expect("a refusal");
    assert!(outcome.stderr.contains("--reload: no filter is in a file (--wasm-filter FILE)"), "{}", outcome.stderr);
}

#[test]
fn a_helper_that_is_gone_is_said_and_the_running_version_serves_on() {
    let (dir, component) = (TempDir::new(), filter("f", State::Stateless).component(BLOCK));
    let server = serve(&dir, &component);
    let mut client = server.client();
    let helpers = rbdkit_tests::server::descendants(server.pid());
    assert_eq!(helpers.len(), 1);
    let helper = Pid::from_raw(helpers[0].cast_signed()).expect("its number");
    kill_process(helper, Signal::KILL).expect("a signal");
    replace(&dir.join("f.wasm"), &version_of(&component, 2));
    let lines = reload(&server, 1);
    assert!(lines[0].contains("f.wasm: the helper process that compiles it is gone; version "), "{lines:?}");
    assert_eq!((seen(&mut client, BLOCK), description(&server)), (text(1), text(1)));
}

#[test]
fn the_helper_that_compiles_ends_with_its_server() {
    let (dir, component) = (TempDir::new(), filter("f", State::Stateless).component(BLOCK));
    let server = serve(&dir, &component);
    replace(&dir.join("f.wasm"), &version_of(&component, 2));
    reload(&server, 1);
    let helpers = rbdkit_tests::server::descendants(server.pid());
    assert_eq!(helpers.len(), 1, "the helper, and no child that compiles any more");
    server.kill();
    let gone = || helpers.iter().all(|pid| !Path::new(&format!("/proc/{pid}/cmdline")).exists());
    rbdkit_tests::wait::until("the end of the helper", gone);
}
