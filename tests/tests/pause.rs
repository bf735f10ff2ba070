//! The filter pause, with real clients: nothing is under way in a pause, and nothing is lost in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Control, Launch, Rng, Server, TempDir, nbdsh, seed, tool, wait};

/// The errno of a request that ended because the server stops.
const ESHUTDOWN: u32 = 108;

fn serve(dir: &TempDir, plugin: &[&str]) -> Launch {
    Launch::new(["--filter=pause"]).args(plugin).path("pause-control", &dir.join("control"))
}

fn control(dir: &TempDir) -> Control {
    Control::connect(&dir.join("control"))
}

#[test]
fn commands_and_answers_are_those_of_nbdkit() {
    for program in [rbdkit_tests::server::program(), PathBuf::from("nbdkit")] {
        let dir = TempDir::new();
        let server = serve(&dir, &["memory", "1M"]).program(program.clone()).start();
        for (commands, answers) in [
            ("p", "P"),
            ("p\n", "P"),
            ("pp", "PP"),
            ("r", "R"),
            ("r\r\n", "RX"),
            ("\tp\n", "P"),
            ("r", "R"),
            ("x", "X"),
            ("P", "X"),
            ("pr\0 q", "PRXX"),
        ] {
            // Each on a connection of its own, as scripts do it.
            let mut control = control(&dir);
            control.send(commands.as_bytes()).expect("commands");
            control.0.shutdown(std::net::Shutdown::Write).expect("the end of the commands");
            let said = control.receive(answers.len()).expect("answers");
            assert_eq!(String::from_utf8_lossy(&said), answers, "{}: {commands:?}", program.display());
            assert!(control.is_closed());
        }
        assert_eq!(server.client().read(0, 16), Ok(vec![0; 16]));
        drop(server);
    }
}

/// What one client wrote last to each of its blocks.
struct Writer {
    blocks: Vec<u8>,
}

/// The blocks of each writer, and their size in bytes.
const BLOCKS: u64 = 64;
const BLOCK: u64 = 4096;

/// Writes and reads back random blocks until it is told to end. `asked` and `answered` count its
/// requests.
fn write_and_verify(
    server: &Server,
    number: u64,
    mut rng: Rng,
    (asked, answered): (&AtomicU64, &AtomicU64),
    ends: &AtomicBool,
) -> Writer {
    let mut client = server.client();
    let mut blocks = vec![0; BLOCKS as usize];
    let base = number * BLOCKS * BLOCK;
    while !ends.load(SeqCst) {
        let block = rng.below(BLOCKS);
        asked.fetch_add(1, SeqCst);
        if rng.chance(60) {
            let value = rng.below(255) as u8 + 1;
            client.write(base + block * BLOCK, &[value; BLOCK as usize]).expect("a write");
            blocks[block as usize] = value;
        } else {
            let read = client.read(base + block * BLOCK, BLOCK as u32).expect("a read");
            assert!(read.iter().all(|byte| *byte == blocks[block as usize]), "block {block} of writer {number}");
        }
        answered.fetch_add(1, SeqCst);
    }
    client.disconnect();
    Writer { blocks }
}

#[test]
fn twenty_pauses_under_load_hold_every_request_and_lose_none() {
    const WRITERS: usize = 4;
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk.img", WRITERS as u64 * BLOCKS * BLOCK);
    let file = format!("file={}", disk.display());
    let server = serve(&dir, &["file", &file]).start();
    let counts: Vec<(AtomicU64, AtomicU64)> = (0..WRITERS).map(|_| Default::default()).collect();
    let (mut rng, ends) = (Rng::new(seed), AtomicBool::new(false));
    let written: Vec<Writer> = std::thread::scope(|scope| {
        let writers: Vec<_> = counts
            .iter()
            .zip(0..)
            .map(|((asked, answered), number)| {
                let (server, rng, ends) = (&server, rng.fork(), &ends);
                scope.spawn(move || write_and_verify(server, number, rng, (asked, answered), ends))
            })
            .collect();
        let mut control = control(&dir);
        for _ in 0..20 {
            let before: Vec<u64> = counts.iter().map(|(_, answered)| answered.load(SeqCst)).collect();
            wait::until("an answer for each writer", || {
                counts.iter().zip(&before).all(|((_, answered), before)| answered.load(SeqCst) > *before)
            });
            assert_eq!(control.say(b"p", 1), "P");
            // Nothing changes from now on, although every writer has a request that waits.
            let snapshot = std::fs::read(&disk).expect("the disk");
            wait::until("a request of each writer", || {
                counts.iter().all(|(asked, answered)| asked.load(SeqCst) > answered.load(SeqCst))
            });
            assert_eq!(control.say(b"p", 1), "P");
            assert!(std::fs::read(&disk).expect("the disk") == snapshot, "a write in a pause");
            assert_eq!(control.say(b"r", 1), "R");
        }
        ends.store(true, SeqCst);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    let bytes = std::fs::read(&disk).expect("the disk");
    let expected: Vec<u8> = written.iter().flat_map(|writer| &writer.blocks).copied().collect();
    assert!(bytes.chunks(BLOCK as usize).map(|block| block[0]).eq(expected), "the disk has what was written");
    assert_eq!(server.stop().stderr, "");
}

#[test]
fn nbdcopy_copies_right_through_twenty_pauses() {
    let dir = TempDir::new();
    let disk = dir.file("disk.img", &Rng::new(7).bytes(16 << 20));
    let file = format!("file={}", disk.display());
    let server = serve(&dir, &["--filter=rate", "file", &file, "rate=256M"]).start();
    let copy = dir.join("copy.img");
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let uri = server.uri();
            tool("nbdcopy", [Path::new(&uri), &copy]).ok();
        });
        let mut control = control(&dir);
        let mut pauses = 0;
        while pauses < 20 || !copying.is_finished() {
            assert_eq!(control.say(b"pr", 2), "PR");
            pauses += 1;
        }
    });
    assert!(std::fs::read(&copy).expect("the copy") == std::fs::read(&disk).expect("the disk"));
}

#[test]
fn fio_verifies_what_it_wrote_through_twenty_pauses() {
    let dir = TempDir::new();
    let server = serve(&dir, &["memory", "16M"]).start();
    let uri = format!("--uri=nbd+unix:///?socket={}", server.socket().display());
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| {
            let job =
                ["--name=verify", "--ioengine=nbd", &uri, "--size=16M", "--rw=randwrite", "--bs=4k", "--iodepth=16"];
            let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1"];
            let more = ["--verify_backlog=64", "--output-format=terse"];
            let output = tool("fio", [&job[..], &verify, &more].concat()).ok();
            let line = output.lines().rfind(|line| line.starts_with("3;")).unwrap_or(&output);
            assert_eq!(line.split(';').nth(4), Some("0"), "fio says\n{output}");
        });
        let mut control = control(&dir);
        let mut pauses = 0;
        while pauses < 20 || !fio.is_finished() {
            assert_eq!(control.say(b"p", 1), "P");
            assert_eq!(control.say(b"r", 1), "R");
            pauses += 1;
        }
    });
}

#[test]
fn a_stop_in_a_pause_ends_what_waits_and_removes_the_socket() {
    let dir = TempDir::new();
    let server = serve(&dir, &["memory", "1M"]).start();
    assert_eq!(control(&dir).say(b"p", 1), "P");
    let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    for client in &mut clients {
        for n in 0..8 {
            client.submit(cmd::READ, 0, n * 512, 512, &[]).expect("a request");
        }
    }
    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                (0..8).map_while(|_| client.receive().ok()).map(|reply| reply.result).collect::<Vec<_>>()
            })
        })
        .collect();
    let outcome = server.stop();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    for client in waiting {
        let answers = client.join().expect("a client");
        assert!(answers.iter().all(|answer| *answer == Err(ESHUTDOWN)), "{answers:?}");
    }
    assert!(!dir.join("control").exists());
}

#[test]
fn a_client_that_leaves_in_a_pause_is_gone_and_its_write_is_not_done() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk.img", 1 << 20);
    let log = dir.join("log");
    let launch = Launch::new(["--filter=log", "--filter=pause", "file"]).path("file", &disk).path("logfile", &log);
    let server = launch.path("pause-control", &dir.join("control")).start();
    let mut control = control(&dir);
    assert_eq!(control.say(b"p", 1), "P");
    let open = server.open_files();
    let mut clients: Vec<_> = (0..10).map(|_| server.client()).collect();
    for client in &mut clients {
        client.submit(cmd::WRITE, 0, 0, 4096, &[1; 4096]).expect("a request");
    }
    server.wait_until("all writes", |_| {
        std::fs::read_to_string(&log).expect("the log").lines().filter(|line| line.contains(" Write ")).count() >= 10
    });
    drop(clients);
    server.wait_until("the end of the connections", |server| server.open_files() <= open);
    assert_eq!(control.say(b"r", 1), "R");
    assert_eq!(server.client().read(0, 4096), Ok(vec![0; 4096]));
    assert!(std::fs::read(&disk).expect("the disk").iter().all(|byte| *byte == 0));
}

#[test]
fn clients_connect_and_ask_in_a_pause() {
    let dir = TempDir::new();
    let server = serve(&dir, &["memory", "1M"]).start();
    assert_eq!(control(&dir).say(b"p", 1), "P");
    let script = "h.connect_uri(uri)\nassert h.get_size() == 1 << 20\nassert h.can_flush()\nh.shutdown()";
    for _ in 0..5 {
        nbdsh(&server.uri(), script).ok();
    }
    tool("nbdinfo", ["--size", &server.uri()]).ok();
}

#[test]
fn what_a_cache_above_writes_back_when_its_client_leaves_passes_a_pause() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk.img", 1 << 20);
    let launch = Launch::new(["--filter=cache", "--filter=pause", "file", "cache=writeback"]).path("file", &disk);
    let server = launch.path("pause-control", &dir.join("control")).start();
    let mut client = server.client();
    client.write(0, &vec![5; 256 << 10]).expect("a write into the cache");
    assert_eq!(control(&dir).say(b"p", 1), "P");
    assert!(std::fs::read(&disk).expect("the disk").iter().all(|byte| *byte == 0), "it is not written back yet");
    client.disconnect();
    wait::until("the write-back", || {
        std::fs::read(&disk).expect("the disk")[..256 << 10].iter().all(|byte| *byte == 5)
    });
    // A request of another client waits all the same.
    let mut waits = server.client();
    waits.submit(cmd::READ, 0, 512 << 10, 512, &[]).expect("a request");
    assert_eq!(control(&dir).say(b"pr", 2), "PR");
    assert_eq!(waits.receive().expect("a reply").result, Ok(vec![0; 512]));
}

#[test]
fn two_pauses_in_a_chain_have_a_socket_each() {
    let dir = TempDir::new();
    let (upper, lower) = (dir.join("upper"), dir.join("lower"));
    let launch = Launch::new(["--filter=pause", "--filter=nofilter", "--filter=pause", "memory", "1M"]);
    let server = launch
        .arg("--filter-param")
        .arg(format!("pause:pause-control={}", upper.display()))
        .arg("--filter-param")
        .arg(format!("pause#2:pause-control={}", lower.display()))
        .start();
    let mut client = server.client();
    let (mut upper, mut lower) = (Control::connect(&upper), Control::connect(&lower));
    for (first, second) in [("upper", "lower"), ("lower", "upper")] {
        let mut say = |which: &str, command: &[u8]| match which {
            "upper" => upper.say(command, 1),
            _ => lower.say(command, 1),
        };
        assert_eq!(say(first, b"p"), "P");
        assert_eq!(say(second, b"p"), "P");
        client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
        assert_eq!(say(first, b"r"), "R");
        assert_eq!(say(second, b"r"), "R");
        assert_eq!(client.receive().expect("a reply").result, Ok(vec![0; 512]));
    }
    // A request that waits at the lower gate is under way for the upper one.
    assert_eq!(lower.say(b"p", 1), "P");
    client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    upper.send(b"p").expect("a command");
    assert_eq!(lower.say(b"r", 1), "R");
    assert_eq!(upper.say(b"r", 2), "PR");
    assert_eq!(client.receive().expect("a reply").result, Ok(vec![0; 512]));
}

#[test]
fn many_clients_of_the_socket_pause_and_resume_at_once() {
    let dir = TempDir::new();
    let server = serve(&dir, &["memory", "1M"]).start();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut control = control(&dir);
                for _ in 0..50 {
                    assert_eq!(control.say(b"p", 1), "P");
                    assert_eq!(control.say(b"r", 1), "R");
                }
            });
        }
        scope.spawn(|| {
            let mut client = server.client();
            for n in 0..200 {
                client.write(n * 512, &[n as u8; 512]).expect("a write");
                assert_eq!(client.read(n * 512, 512), Ok(vec![n as u8; 512]));
            }
        });
    });
    assert_eq!(server.stop().stderr, "");
}

#[test]
fn a_path_that_cannot_be_the_socket_is_one_line() {
    let dir = TempDir::new();
    let path = dir.file("control", b"precious");
    let said = |launch: Launch| launch.try_start().err().expect("it does not start").stderr;
    let shown = path.display();
    assert_eq!(
        said(serve(&dir, &["memory", "1M"])),
        format!("rbdkit: error: pause-control={shown}: exists already, and is not a socket\n")
    );
    assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
    std::fs::remove_file(&path).expect("the file");
    // A socket that a killed server has left is replaced; one that is served is not.
    let first = serve(&dir, &["memory", "1M"]).start();
    assert_eq!(
        said(serve(&dir, &["memory", "1M"])),
        format!("rbdkit: error: pause-control={shown}: another server, or another filter of this one, listens on it\n")
    );
    assert_eq!(control(&dir).say(b"r", 1), "R");
    first.kill();
    assert!(path.exists());
    let second = serve(&dir, &["memory", "1M"]).start();
    assert_eq!(control(&dir).say(b"r", 1), "R");
    second.stop();
    assert!(!path.exists());
}
