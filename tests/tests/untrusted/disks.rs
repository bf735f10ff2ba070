//! Disks that the operator gives to a filter beside next (parameters of the kind `disk`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rbdkit_tests::raw::cmd;
use rbdkit_tests::{Client, Launch, TempDir, wait};

use crate::guest::Guest;

/// A read first gets the block from next, and does what the block says: operation, length of the
/// parameter's name, occurrence, offset, length, buffer, position, flags, name. The answer is the
/// read's data: what a read of the disk has put there, or else the result as the contract lowers
/// it, and behind it the list of a success.
const OBEYS: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "read" (func $out (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $in (param i32 i32 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "size" (func $size (param i32 i32 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "pread" (func $read (param i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "extents" (func $extents (param i32 i32 i32 i64 i64 i32 i32)))
    (import "rbdkit:filter/disks@0.1.0" "cache" (func $cache (param i32 i32 i32 i64 i64 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (local $o i32) (local $name i32) (local $length i32) (local $nth i32)
        (call $next (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (global.set $top (i32.const 8192))
        (call $out (i32.const 0) (i32.const 0) (i32.const 512) (i32.const 2056))
        (local.set $o (i32.load (i32.const 2056)))
        (local.set $name (i32.add (local.get $o) (i32.const 48)))
        (local.set $length (i32.load offset=4 (local.get $o)))
        (local.set $nth (i32.load offset=8 (local.get $o)))
        (memory.fill (i32.const 2104) (i32.const 0) (i32.const 32))
        (if (i32.eq (i32.load (local.get $o)) (i32.const 0)) (then
            (call $size (local.get $name) (local.get $length) (local.get $nth) (i32.const 2104))))
        (if (i32.eq (i32.load (local.get $o)) (i32.const 1)) (then
            (call $read (local.get $name) (local.get $length) (local.get $nth) (i64.load offset=16 (local.get $o))
                (i32.load offset=24 (local.get $o)) (i32.load offset=32 (local.get $o))
                (i32.load offset=36 (local.get $o)) (i32.const 2104))
            (if (i32.eqz (i32.load8_u (i32.const 2104))) (then (return (i32.const 1200))))))
        (if (i32.eq (i32.load (local.get $o)) (i32.const 2)) (then
            (call $extents (local.get $name) (local.get $length) (local.get $nth)
                (i64.load offset=16 (local.get $o)) (i64.load offset=24 (local.get $o))
                (i32.load offset=40 (local.get $o)) (i32.const 2104))
            (if (i32.eqz (i32.load8_u (i32.const 2104))) (then
                (call $in (i32.const 0) (i32.const 32) (i32.load (i32.const 2108))
                    (i32.mul (i32.const 24) (i32.load (i32.const 2112))))))))
        (if (i32.eq (i32.load (local.get $o)) (i32.const 3)) (then
            (call $cache (local.get $name) (local.get $length) (local.get $nth)
                (i64.load offset=16 (local.get $o)) (i64.load offset=24 (local.get $o)) (i32.const 2104))))
        (call $in (i32.const 0) (i32.const 0) (i32.const 2104) (i32.const 32))
        (i32.const 1200))"#;

/// The errnos of the contract that are expected here, by their numbers.
const ENOENT: u8 = 1;
const EIO: u8 = 2;
const EINVAL: u8 = 4;

/// What the client gets for a trap.
const CLIENT_EIO: u32 = 5;

/// What the guest is to do.
#[derive(Clone, Copy)]
struct Order {
    operation: u32,
    param: &'static str,
    nth: u32,
    offset: u64,
    length: u64,
    buf: u32,
    at: u32,
    flags: u32,
}

impl Order {
    fn new(operation: u32, param: &'static str, offset: u64, length: u64) -> Order {
        Order { operation, param, nth: 0, offset, length, buf: 0, at: 0, flags: 0 }
    }

    fn size(param: &'static str) -> Order {
        Order::new(0, param, 0, 0)
    }

    fn read(offset: u64, length: u64) -> Order {
        Order::new(1, "base", offset, length)
    }

    fn extents(offset: u64, length: u64) -> Order {
        Order::new(2, "base", offset, length)
    }

    fn cache(offset: u64, length: u64) -> Order {
        Order::new(3, "base", offset, length)
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut words = |words: &[u32]| words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        words(&[self.operation, self.param.len() as u32, self.nth, 0]);
        words(&[self.offset as u32, (self.offset >> 32) as u32, self.length as u32, (self.length >> 32) as u32]);
        words(&[self.buf, self.at, self.flags, 0]);
        bytes.extend(self.param.as_bytes());
        bytes.resize(512, 0);
        bytes
    }
}

/// Gives the guest an order. Returns the answer, or the errno that the client got.
fn ask(client: &mut Client, order: Order) -> Result<Vec<u8>, u32> {
    client.write(0, &order.bytes()).expect("an order");
    client.read(0, 512)
}

/// The errno of an answer at this place.
fn errno(answer: &Result<Vec<u8>, u32>, at: usize) -> Option<u8> {
    let answer = answer.as_ref().expect("an answer");
    (answer[0] == 1).then(|| answer[at])
}

fn number(answer: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(answer[at..at + 8].try_into().expect("eight bytes"))
}

fn component(dir: &TempDir) -> PathBuf {
    let params = vec![("base", "disk"), ("more", "disk"), ("file", "path-read"), ("text", "string")];
    let guest = Guest { params, ..Guest::new("obeys", &["reads"], OBEYS) };
    dir.file("obeys.wasm", &guest.component(0))
}

fn obeys(dir: &TempDir, given: &[String]) -> Launch {
    Launch::new(["--wasm-filter"]).arg(component(dir)).args(["memory", "1M"]).args(given)
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251 + 1) as u8).collect()
}

/// A chain of the eval plugin: what its functions do.
fn eval(functions: &[(&str, String)]) -> String {
    let words = functions.iter().map(|(function, script)| format!(" {function}='{script}'"));
    format!("chain:eval{}", words.collect::<String>())
}

#[test]
fn each_use_of_a_disk_has_its_exact_outcome() {
    let dir = TempDir::new();
    let mut content = pattern(70_000);
    content[8192..65536].fill(0);
    let base = dir.file("base.img", &content);
    let more = dir.file("more.img", b"more");
    let given =
        [format!("base={}", base.display()), format!("more={}", more.display()), format!("file={}", more.display())];
    let server = obeys(&dir, &given).arg("text=x").start();
    let mut client = server.client();
    let mut ask = |order| ask(&mut client, order);
    assert_eq!(number(&ask(Order::size("base")).expect("a size"), 8), 70_000);
    assert_eq!(number(&ask(Order::size("more")).expect("a size"), 8), 4);
    for (offset, length) in [(0, 512), (69_999, 1), (8000, 300)] {
        let read = ask(Order::read(offset, length)).expect("bytes");
        let (offset, length) = (offset as usize, length as usize);
        assert_eq!(read[..length], content[offset..offset + length], "{offset}");
    }
    let placed = ask(Order { at: 500, ..Order::read(1000, 12) }).expect("bytes");
    assert_eq!(placed[500..], content[1000..1012]);
    for order in [Order::read(70_000, 1), Order::read(69_999, 2), Order::read(u64::MAX, 2), Order::read(1 << 63, 512)] {
        assert_eq!(errno(&ask(order), 1), Some(EINVAL), "a read at {}", order.offset);
    }
    // What does not fit into the buffer traps.
    for order in [
        Order { at: 1, ..Order::read(0, 512) },
        Order { at: u32::MAX, ..Order::read(0, 1) },
        Order { buf: 7, ..Order::read(0, 1) },
        Order::read(0, u64::from(u32::MAX)),
    ] {
        assert_eq!(ask(order), Err(CLIENT_EIO));
    }
    for (param, nth, expected) in [
        ("base", 1, ENOENT),
        ("base", u32::MAX, ENOENT),
        ("nothing", 0, ENOENT),
        ("", 0, ENOENT),
        ("file", 0, EINVAL),
        ("file", 1, ENOENT),
        ("text", 0, EINVAL),
    ] {
        assert_eq!(errno(&ask(Order { nth, ..Order::size(param) }), 8), Some(expected), "size of {param} {nth}");
        let read = Order { param, nth, ..Order::read(0, 1) };
        assert_eq!(errno(&ask(read), 1), Some(expected), "pread of {param} {nth}");
        let extents = Order { param, nth, ..Order::extents(0, 1) };
        assert_eq!(errno(&ask(extents), 4), Some(expected), "extents of {param} {nth}");
        let cache = Order { param, nth, ..Order::cache(0, 1) };
        assert_eq!(errno(&ask(cache), 1), Some(expected), "cache of {param} {nth}");
    }
    for order in [
        Order::extents(0, u64::MAX),
        Order::extents(u64::MAX, 1),
        Order::extents(0, 70_001),
        Order::extents(70_000, 1),
        Order { flags: u32::MAX, ..Order::extents(0, 70_001) },
    ] {
        assert_eq!(errno(&ask(order), 4), Some(EINVAL), "extents at {} {}", order.offset, order.length);
    }
    let list = ask(Order::extents(100, 60_000)).expect("a list");
    let count = u64::from(u32::from_le_bytes(list[8..12].try_into().expect("four bytes")));
    let entries = (0..count as usize).map(|nth| (number(&list, 32 + 24 * nth), number(&list, 40 + 24 * nth)));
    let mut at = 100;
    for (offset, length) in entries {
        assert_eq!(offset, at, "{list:?}");
        at += length;
    }
    assert_eq!(at, 60_100, "the list is cut to the range");
    assert_eq!(errno(&ask(Order::cache(0, 70_000)), 1), None);
    for order in [Order::cache(0, 70_001), Order::cache(u64::MAX, u64::MAX)] {
        assert_eq!(errno(&ask(order), 1), Some(EINVAL));
    }
    assert_eq!(std::fs::read(&base).expect("the file"), content, "a disk is only read");
}

#[test]
fn a_disk_is_for_requests_alone() {
    let body = r#"
    (import "rbdkit:filter/disks@0.1.0" "size" (func $size (param i32 i32 i32 i32)))
    (data (i32.const 3000) "base")
    (func $refused
        (call $size (i32.const 3000) (i32.const 4) (i32.const 0) (i32.const 2104))
        (if (i32.ne (i32.load8_u (i32.const 2104)) (i32.const 1)) (then (unreachable)))
        (if (i32.ne (i32.load8_u (i32.const 2112)) (i32.const 12)) (then (unreachable))))
    (func (export "rbdkit:filter/lifecycle@0.1.0#get-ready") (result i32) (call $refused) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#after-fork") (result i32) (call $refused) (i32.const 1200))
    (func (export "rbdkit:filter/lifecycle@0.1.0#cleanup") (call $refused))
    (func (export "rbdkit:filter/admission@0.1.0#preconnect") (param i32) (result i32) (call $refused)
        (i32.const 1200))"#;
    let dir = TempDir::new();
    let guest = Guest {
        params: vec![("base", "disk")],
        configure: "(call $refused) (i32.const 1200)",
        ..Guest::new("early", &["lifecycle", "admission"], body)
    };
    let file = dir.file("early.wasm", &guest.component(0));
    let base = dir.file("base.img", b"base");
    let server = Launch::new(["--wasm-filter"]).arg(file).args(["memory", "1M"]).path("base", &base).start();
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    assert_eq!(server.stop().stderr, "");
}

#[test]
fn what_is_no_disk_is_refused_in_a_line_before_the_server_listens() {
    let dir = TempDir::new();
    let directory = dir.join("d");
    std::fs::create_dir(&directory).expect("a directory");
    let filter = component(&dir).display().to_string();
    // Each level quotes the one below it.
    let nested = |levels: usize| {
        (1..levels).fold("chain:memory 1M".to_string(), |below, _| {
            let quoted = below.replace('\\', "\\\\").replace('"', "\\\"");
            format!("chain:--wasm-filter {filter} memory 1M \"base={quoted}\"")
        })
    };
    for (value, line) in [
        ("/nonexistent".to_string(), "base=/nonexistent: No such file or directory (os error 2)".to_string()),
        (
            directory.display().to_string(),
            format!("base={}: is a directory; dir= serves the files in it", directory.display()),
        ),
        ("chain:".into(), "base=chain:...: no plugin given, for example: chain:file disk.img".into()),
        ("chain:memory '1M".into(), "base=chain:...: a ' is not closed".into()),
        (
            "chain:memory 1X".into(),
            "base=chain:... memory ...: size=1X: is not a size: digits and one of b, s, k, M, G, T, P, E, for example \
             512, 64k or 1G"
                .into(),
        ),
        ("".into(), "base=: is not a disk".into()),
    ] {
        let refused = obeys(&dir, &[format!("base={value}")]).try_start().err().expect("it is refused");
        assert_eq!(refused.stderr, format!("rbdkit: error: {line}\n"));
    }
    let refused = obeys(&dir, &[format!("base={}", nested(9))]).try_start().err().expect("it is refused");
    let prefix = "base=chain:... memory ...: ".repeat(8);
    assert_eq!(
        refused.stderr,
        format!("rbdkit: error: {prefix}base=chain:... memory ...: disks are nested more than 8 deep\n")
    );
    obeys(&dir, &[format!("base={}", nested(8))]).start();
}

#[test]
fn a_disk_has_filters_and_a_life_of_its_own_and_is_opened_once() {
    let dir = TempDir::new();
    let log = dir.join("log");
    let note = |what: &str| format!("echo {what} >>{}", log.display());
    let disk = eval(&[
        ("get_ready", note("get_ready")),
        ("after_fork", note("after_fork")),
        ("open", note("open $2")),
        ("close", note("close")),
        ("unload", note("unload")),
        ("get_size", "echo 4096".into()),
        ("pread", "yes | head -c $3".into()),
    ]);
    let disk = format!("{} offset=1k", disk.replacen("chain:", "chain:--filter=offset ", 1));
    let server = obeys(&dir, &[format!("base={disk}"), format!("more={disk}")]).start();
    assert_eq!(std::fs::read_to_string(&log).expect("the log"), "get_ready\nafter_fork\n".repeat(2));
    let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
    for client in &mut clients {
        assert_eq!(number(&ask(client, Order::size("base")).expect("a size"), 8), 3072);
        let read = ask(client, Order::read(3070, 2)).expect("bytes");
        assert_eq!(read[..2], *b"y\n");
        assert_eq!(errno(&ask(client, Order::read(3071, 2)), 1), Some(EINVAL));
    }
    clients.into_iter().for_each(Client::disconnect);
    let outcome = server.stop();
    assert_eq!(outcome.stderr, "");
    let lines = std::fs::read_to_string(&log).expect("the log");
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[4..6], ["open true", "close"], "once for all clients, and for reading: {lines:?}");
    assert_eq!(lines[6..], ["unload"; 2], "{lines:?}");
}

#[test]
fn a_disk_that_cannot_be_opened_is_one_line_and_is_tried_again() {
    let dir = TempDir::new();
    let there = dir.join("there");
    let disk = eval(&[
        ("open", format!("test -e {} || {{ echo EIO not yet >&2; exit 1; }}", there.display())),
        ("get_size", "echo 4096".into()),
        ("pread", "yes | head -c $3".into()),
    ]);
    let server = obeys(&dir, &[format!("base={disk}")]).start();
    let mut client = server.client();
    for _ in 0..3 {
        assert_eq!(errno(&ask(&mut client, Order::read(0, 1)), 1), Some(EIO));
    }
    std::fs::write(&there, "").expect("a file");
    assert_eq!(ask(&mut client, Order::read(0, 1)).expect("a byte")[0], b'y');
    client.disconnect();
    let log = server.stop().stderr;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("cannot be opened")).collect();
    let [line] = lines[..] else { panic!("{log}") };
    // Between the two is the path of the script.
    assert!(line.starts_with("rbdkit: error: obeys: base=chain:... eval ...: cannot be opened: /"), "{line}");
    assert!(line.ends_with("/open: not yet (EIO)"), "{line}");
}

#[test]
fn a_disk_that_hangs_keeps_neither_other_clients_nor_the_server_from_ending() {
    for hanging in ["open", "pread"] {
        let dir = TempDir::new();
        let began = dir.join("began");
        let mut functions = vec![("get_size", "echo 4096".to_string()), ("thread_model", "echo parallel".into())];
        functions.push((hanging, format!("touch {}; exec sleep 600", began.display())));
        if hanging == "open" {
            functions.push(("pread", "yes | head -c $3".into()));
        }
        let server = obeys(&dir, &[format!("base={}", eval(&functions))]).start();
        // A client that leaves, and one that stays.
        let mut leaves = server.client();
        leaves.write(0, &Order::read(0, 1).bytes()).expect("an order");
        leaves.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
        wait::until("the disk's script", || began.exists());
        drop(leaves);
        let mut stays = server.client();
        stays.write(512, &Order::read(0, 1).bytes()).expect("an order");
        stays.submit(cmd::READ, 0, 512, 512, &[]).expect("a request");
        let mut other = server.client();
        assert_eq!(errno(&ask(&mut other, Order::size("nothing")), 8), Some(ENOENT), "others are served");
        let stopping = std::time::Instant::now();
        server.stop();
        assert!(stopping.elapsed() < Duration::from_secs(60), "{hanging}: {:?}", stopping.elapsed());
    }
}

#[test]
fn a_component_that_is_reloaded_keeps_the_disk() {
    let dir = TempDir::new();
    let opened = dir.join("opened");
    let disk = eval(&[
        ("open", format!("echo open >>{}", opened.display())),
        ("get_size", "echo 4096".into()),
        ("pread", "yes | head -c $3".into()),
    ]);
    let server = obeys(&dir, &[format!("base={disk}")]).args(["--reload", "-v"]).start();
    let mut client = server.client();
    assert_eq!(ask(&mut client, Order::read(0, 1)).expect("a byte")[0], b'y');
    let params = vec![("base", "disk"), ("more", "disk")];
    let changed = format!("{OBEYS}\n(data (i32.const 3000) \"new\")");
    let guest = Guest { params, ..Guest::new("obeys", &["reads"], &changed) };
    replace(&dir.join("obeys.wasm"), &guest.component(0));
    server.signal(rustix::process::Signal::HUP);
    server.wait_until("the reload", |server| server.stderr().contains(": reload: "));
    for mut client in [client, server.client()] {
        assert_eq!(ask(&mut client, Order::read(0, 1)).expect("a byte")[0], b'y');
    }
    assert_eq!(std::fs::read_to_string(&opened).expect("the log"), "open\n");
}

fn replace(file: &Path, bytes: &[u8]) {
    let new = file.with_extension("new");
    std::fs::write(&new, bytes).expect("a file");
    std::fs::rename(new, file).expect("a file in its place");
}
