//! The filters log, stats and count in the program, compared with nbdkit's where it has them.

use std::path::Path;

use rbdkit_tests::{Launch, Server, TempDir, nbdsh, tool, wait};

/// A client that does each operation once, and one that fails.
const OPERATIONS: &str = "\
h.add_meta_context('base:allocation')
h.connect_uri(uri)
h.pwrite(b'x' * 4096, 0)
h.pwrite(b'x' * 4096, 4096, nbd.CMD_FLAG_FUA)
h.pread(512, 1)
h.zero(8192, 65536)
h.zero(8192, 65536, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 4096)
h.flush()
h.cache(4096, 0)
h.block_status(65536, 0, lambda *arguments: 0)
h.shutdown()";

fn nbdkit(arguments: &[&str]) -> Launch {
    Launch::new(arguments).program("/usr/bin/nbdkit".into())
}

/// The lines of a log without their times. nbdkit has no line Fork with `-f`.
fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).expect("the log");
    let lines = text.lines().map(|line| {
        let (time, rest) = line.split_at("2026-11-27 18:29:58.986992".len());
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00 00:00:00.000000", "{line}");
        rest.trim_start().to_string()
    });
    lines.filter(|line| line != "Fork").collect()
}

/// A connection that has ended for its client is still being closed in the server. So the test
/// waits for the last line.
fn wait_for_disconnects(log: &Path, count: usize) {
    let ended = |log: &Path| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.matches(" Disconnect transactions=").count() == count && text.ends_with('\n')
    };
    wait::until("the lines of all connections", || ended(log));
}

/// The plugins do not state the same block sizes.
fn without_block_sizes(line: String) -> String {
    let words = line.split(' ').map(|word| match word.split_once('=') {
        Some((name @ ("minsize" | "prefsize" | "maxsize"), _)) => name,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_log_of_a_session_is_that_of_nbdkit_line_by_line() {
    let dir = TempDir::new();
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    let arguments = ["--filter=log", "memory", "1M"];
    let serve = |launch: Launch, log: &Path| {
        let server = launch.path("logfile", log).start();
        tool("nbdinfo", ["--list", &server.uri()]).ok();
        wait_for_disconnects(log, 1);
        nbdsh(&server.uri(), OPERATIONS).ok();
        wait_for_disconnects(log, 2);
        assert!(server.stop().status.success());
        lines(log).into_iter().map(without_block_sizes).collect::<Vec<_>>()
    };
    let expected = serve(nbdkit(&arguments), &theirs);
    let found = serve(Launch::new(arguments), &ours);
    assert_eq!(expected.len(), 29, "{expected:?}");
    assert_eq!(found, expected);
}

/// With names and descriptions of exports, block sizes, a part of the disk, and FUA that is
/// emulated.
#[test]
fn in_a_stack_of_five_filters_the_log_is_that_of_nbdkit_line_by_line() {
    let dir = TempDir::new();
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    let words = [
        "exportname-list=explicit",
        "exportname=b",
        "exportname=a",
        "exportname-strict=true",
        "exportdesc=script:echo about-$name",
        "blocksize-preferred=8k",
        "offset=32k",
        "range=512k",
        "fuamode=emulate",
    ];
    let operations = OPERATIONS.replace("h.connect_uri(uri)", "h.connect_uri(uri.replace(':///?', ':///a?'))");
    let refused = "print(fails(lambda: h.connect_uri(uri.replace(':///?', ':///c?'))))";
    for stack in [
        ["log", "exportname", "blocksize-policy", "offset", "fua"],
        ["exportname", "offset", "fua", "log", "blocksize-policy"],
    ] {
        let serve = |launch: Launch, log: &Path| {
            let filters = stack.map(|filter| format!("--filter={filter}"));
            let server = launch.args(filters).args(["memory", "1M"]).args(words).path("logfile", log).start();
            let list = tool("nbdinfo", ["--list", &server.uri()]).ok();
            assert!(list.contains("about-a") && list.contains("about-b"), "{list}");
            wait_for_disconnects(log, 2);
            assert_ne!(nbdsh(&server.uri(), refused).ok().trim(), "success");
            nbdsh(&server.uri(), &operations).ok();
            wait_for_disconnects(log, 3);
            assert!(server.stop().status.success());
            lines(log).into_iter().map(without_block_sizes).collect::<Vec<_>>()
        };
        let no_arguments: [&str; 0] = [];
        let expected = serve(nbdkit(&no_arguments), &theirs);
        let found = serve(Launch::new(no_arguments), &ours);
        assert!(expected.len() > 30, "{expected:?}");
        assert_eq!(found, expected, "{stack:?}");
    }
}

#[test]
fn an_error_is_in_the_log_and_a_file_is_emptied_or_kept() {
    let dir = TempDir::new();
    let log = dir.join("log");
    std::fs::write(&log, "2026-11-27 18:29:58.986992 kept\n").expect("a file");
    let serve = |more: &[&str]| {
        let arguments = ["--filter=log", "--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%"];
        let server = Launch::new(arguments).args(more).path("logfile", &log).start();
        nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pread(1, 0)").fails();
        wait_for_disconnects(&log, 1);
        server.stop();
        lines(&log)
    };
    let found = serve(&["logappend=true"]);
    assert_eq!((&*found[0], &*found[1]), ("kept", "Ready thread_model=3"));
    assert!(found.iter().any(|line| line == "connection=1 ...Read id=1 return=-1 error=EIO"), "{found:?}");
    std::fs::remove_file(&log).expect("the log");
    let again = serve(&[]);
    assert_eq!(again[..], found[1..]);
}

#[test]
fn a_client_cannot_forge_a_line_of_the_log() {
    let dir = TempDir::new();
    let log = dir.join("log");
    let server = Launch::new(["--filter=log", "memory", "1M"]).path("logfile", &log).start();
    nbdsh(&server.uri(), "h.set_export_name('x\\n2026 $`\\\\')\nh.connect_unix(uri.split('socket=')[1])").ok();
    wait_for_disconnects(&log, 1);
    let found = lines(&log);
    let connect = found.iter().find(|line| line.contains(" Connect ")).expect("a line");
    assert!(connect.starts_with(r#"connection=1 Connect export="x\n2026 \$\`\\" tls=0 size=0x100000 "#), "{connect}");
}

#[test]
fn a_pipe_that_nobody_reads_stops_no_client() {
    let dir = TempDir::new();
    let pipe = dir.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    let server = Launch::new(["--filter=log", "memory", "1M"]).path("logfile", &pipe).start();
    // The pipe has room for 64 KiB, and each read takes more than 100 bytes.
    nbdsh(&server.uri(), "h.connect_uri(uri)\nfor i in range(2000): assert h.pread(512, 0) == bytes(512)").ok();
    server.wait_for_log("log: logfile: a line is lost: enospc");
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}\n{}", outcome.status, outcome.stderr);
}

#[test]
fn every_request_of_many_clients_has_its_two_lines() {
    let dir = TempDir::new();
    let log = dir.join("log");
    let server = Launch::new(["--filter=log", "memory", "1M"]).path("logfile", &log).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                (0..100).for_each(|n| drop(client.read(n * 512, 512).expect("a read")));
                client.disconnect();
            });
        }
    });
    wait_for_disconnects(&log, 8);
    let found = lines(&log);
    for connection in 1..=8 {
        for id in 1..=100 {
            let begin = format!("connection={connection} Read id={id} offset=");
            assert_eq!(found.iter().filter(|line| line.starts_with(&begin)).count(), 1, "{begin}");
            let end = format!("connection={connection} ...Read id={id} return=0");
            assert_eq!(found.iter().filter(|line| **line == end).count(), 1, "{end}");
        }
    }
}

#[test]
fn a_script_gets_each_line_and_cannot_fail_a_request() {
    let dir = TempDir::new();
    let notes = dir.join("notes");
    let script =
        format!("logscript=echo $act $type $connection $id $offset $count $error >>{}; exit 1", notes.display());
    let server = Launch::new(["--filter=log", "memory", "1M"]).arg(script).start();
    nbdsh(&server.uri(), "h.connect_uri(uri)\nh.pread(512, 1024)\nh.shutdown()").ok();
    wait::until("the last line", || std::fs::read_to_string(&notes).is_ok_and(|text| text.contains("Disconnect")));
    let text = std::fs::read_to_string(&notes).expect("the notes");
    for line in ["Ready PRINT", "Read ENTER 1 1 0x400 0x200", "Read LEAVE 1 1", "Disconnect PRINT 1"] {
        assert_eq!(text.lines().filter(|said| *said == line).count(), 1, "{line}\n{text}");
    }
    assert_eq!(server.stop().stderr, "");
}

/// Runs the operations, stops the server, and returns the report.
fn report(server: Server, file: &Path) -> String {
    nbdsh(&server.uri(), OPERATIONS).ok();
    nbdsh(&server.uri(), "h.connect_uri(uri)\nfor n in range(8): h.pread(512, 512 * n)\nh.shutdown()").ok();
    assert!(server.stop().status.success());
    std::fs::read_to_string(file).expect("the report")
}

/// A report without times, rates, and the bytes of other sizes, which nbdkit does not tell.
fn masked(report: &str) -> Vec<String> {
    let lines = report.lines().map(|line| match line.split_once(" ops, ") {
        // "read: 9 ops, 0.000011 s, 4.50 KiB, ..."
        Some((ops, rest)) => format!("{ops} ops, {}", rest.split(", ").nth(1).expect("the bytes")),
        None if line.contains("other sizes:") => line.split(" reqs").next().expect("the number").to_string(),
        None => line.to_string(),
    });
    lines.collect()
}

#[test]
fn the_report_of_stats_is_that_of_nbdkit() {
    let dir = TempDir::new();
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    let arguments = ["--filter=stats", "memory", "1M"];
    for threshold in ["statsthreshold=95", "statsthreshold=0"] {
        let serve = |launch: Launch, file: &Path| report(launch.path("statsfile", file).arg(threshold).start(), file);
        let expected = masked(&serve(nbdkit(&arguments), &theirs));
        let found = masked(&serve(Launch::new(arguments), &ours));
        assert!(expected.iter().any(|line| line.starts_with("total: 16 ops")), "{expected:?}");
        assert_eq!(found, expected);
    }
    let missing = Launch::new(arguments).try_start().err().expect("it is required");
    assert!(missing.stderr.contains("statsfile"), "{}", missing.stderr);
}

#[test]
fn stats_counts_every_request_of_many_clients() {
    let dir = TempDir::new();
    let file = dir.join("stats");
    std::fs::write(&file, "kept\n").expect("a file");
    let arguments = ["--filter=stats", "memory", "1M", "statsappend=true"];
    let server = Launch::new(arguments).path("statsfile", &file).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                (0..200).for_each(|n| drop(client.read(n * 512, 512).expect("a read")));
                client.disconnect();
            });
        }
    });
    server.stop();
    let text = std::fs::read_to_string(&file).expect("the report");
    assert!(text.starts_with("kept\ntotal: 1600 ops, "), "{text}");
    assert!(text.contains("     9 bits: 100.0% (1600 reqs, 800.00 KiB total)\n          9 bit aligned: "), "{text}");
}

#[test]
fn count_logs_the_bytes_of_all_clients_at_the_end() {
    let server = Launch::new(["--filter=count", "memory", "1M"]).start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| nbdsh(&server.uri(), OPERATIONS).ok());
        }
    });
    let log = server.stop().stderr;
    let line = "rbdkit: info: count: count bytes: read 2048, written 32768, zeroed 65536, trimmed 16384";
    assert!(log.lines().any(|said| said == line), "{log}");
}
