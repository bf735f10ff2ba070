//! The log: whoever reads it, or does not, the clients are served; and nobody can flood it.

use std::io::{PipeReader, Read, Write};

use rbdkit_tests::raw::{Stream, go, opt};
use rbdkit_tests::server::is_nbdkit;
use rbdkit_tests::{Launch, Server, wait};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Requests that fail and whose lines, with `-v`, are more than the program keeps for a reader.
const FAILURES: u64 = 10_000;

/// A server that fails every read.
const FAILING: [&str; 5] = ["--filter=error", "pattern", "1M", "error-pread=EIO", "error-pread-rate=100%"];

/// A server whose standard error is a full pipe, and the end from which nobody reads.
fn unread(arguments: &[&str]) -> (Server, PipeReader) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let server = Launch::new(arguments).stderr(writer.try_clone().expect("a descriptor")).start();
    let flags = fcntl_getfl(&writer).expect("the pipe's flags");
    // The flag is the pipe's, so the server has it as well until it is taken back.
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("a pipe that does not block");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, flags).expect("a pipe that blocks");
    (server, reader)
}

#[test]
fn a_log_that_nobody_reads_stops_neither_clients_nor_the_end() {
    for verbose in [&[][..], &["-v"]] {
        if is_nbdkit() {
            return;
        }
        let (server, _reader) = unread(&[verbose, &FAILING].concat());
        let mut client = server.client();
        for _ in 0..FAILURES {
            assert_eq!(client.read(0, 512), Err(5));
        }
        assert_eq!(server.client().size, 1 << 20);
        let outcome = server.stop();
        assert!(outcome.status.success(), "{}", outcome.status);
    }
}

#[test]
fn a_reader_that_comes_late_learns_how_many_messages_it_missed() {
    if is_nbdkit() {
        return;
    }
    let (server, mut reader) = unread(&[&["-v"][..], &FAILING].concat());
    let mut client = server.client();
    for _ in 0..FAILURES {
        assert_eq!(client.read(0, 512), Err(5));
    }
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| String::from_utf8_lossy(&all).into_owned())
    });
    drop(client);
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}", outcome.status);
    wait::until("the pipe ends", || reading.is_finished());
    let text = reading.join().expect("the reader").expect("a pipe");
    let missed = " messages were dropped: standard error was not read";
    assert!(text.lines().any(|line| line.ends_with(missed)), "{}", text.trim_start_matches('x'));
}

#[test]
fn a_client_cannot_write_long_lines_into_the_log() {
    if is_nbdkit() {
        return;
    }
    let server = Server::start(["eval", "get_size=echo 1M", "open=echo >&2 no; exit 1"]);
    let name = "\u{1}".repeat(4000);
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    let refused = 300;
    for _ in 0..refused {
        stream.option(opt::GO, &go(&name, &[])).expect("an option");
        stream.option_replies(opt::GO).expect("a refusal");
    }
    drop(stream);
    let outcome = server.stop();
    // Uncut they would be 7 MB. At least the burst is written, 2000 lines of 256 bytes.
    let longest = outcome.stderr.lines().map(str::len).max().unwrap_or_default();
    assert!((1000..=4096).contains(&longest), "{longest}");
    assert!((400_000..refused * 5000).contains(&outcome.stderr.len()), "{}", outcome.stderr.len());
}
