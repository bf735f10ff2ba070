//! Clients that leave while their export is opened or listed.

use rbdkit_tests::raw::{Stream, cmd, go, opt};
use rbdkit_tests::{Launch, Server, TempDir, wait};

use crate::guest::Guest;
use crate::states::connection;

fn asks(server: &Server, option: u32, data: &[u8]) -> Stream {
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(option, data).expect("an option");
    stream
}

/// How many lines a file has that scripts add lines to.
fn lines(dir: &TempDir) -> usize {
    std::fs::read_to_string(dir.join("asked")).map_or(0, |text| text.lines().count())
}

/// An eval plugin whose `open` hangs while the file DIR/hang exists.
fn hanging_in_open(dir: &TempDir, options: &[&str]) -> Launch {
    std::fs::write(dir.join("hang"), "").expect("a file");
    let open = "open=if test -e DIR/hang; then echo >>DIR/asked; exec sleep 1000; fi";
    let methods = ["thread_model=echo parallel", "get_size=echo 1M", "pread=head -c $3 /dev/zero", open];
    let methods = methods.map(|method| method.replace("DIR", &dir.path().display().to_string()));
    Launch::new(options).arg("eval").args(methods)
}

#[test]
fn an_upstream_that_hung_in_70_opens_leaves_places_for_others() {
    let dir = TempDir::new();
    let server = hanging_in_open(&dir, &["--filter=cow", "--filter=cache"]).start();
    let clients: Vec<Stream> = (0..70).map(|_| asks(&server, opt::GO, &go("", &[]))).collect();
    // A filter lets half of its 128 instances open at the same time.
    wait::until("the opens hang", || lines(&dir) >= 60);
    std::fs::remove_file(dir.join("hang")).expect("the file");
    drop(clients);
    assert!(server.client().read(0, 512).is_ok());
    assert!(server.stop().status.success());
}

#[test]
fn a_client_that_left_a_hanging_open_of_a_serialized_filter_does_not_block_reads_of_others() {
    let dir = TempDir::new();
    // One instance serves all connections, and its memory holds state (replay).
    let guest = Guest { recovery: 1, ..Guest::new("single", &["connection"], &connection("", "(i32.const 1200)")) };
    let reads = Guest::reads("single", "", "");
    let guest =
        Guest { exports: vec!["connection", "reads"], body: format!("{}{}", guest.body, reads.body), ..guest.model(1) };
    let file = dir.file("filter.wasm", &guest.component(0));
    let filter = file.to_str().expect("a name in UTF-8").to_owned();
    let server = hanging_in_open(&dir, &["--wasm-filter", &filter]);
    std::fs::remove_file(dir.join("hang")).expect("the file");
    let server = server.start();
    let mut reader = server.client();
    std::fs::write(dir.join("hang"), "").expect("a file");
    let opening = asks(&server, opt::GO, &go("", &[]));
    wait::until("the open hangs", || lines(&dir) == 1);
    reader.submit(cmd::READ, 0, 0, 512, &[]).expect("a read");
    drop(opening);
    assert!(reader.receive().expect("a reply").result.is_ok());
    // The state of the instance is still there.
    assert!(reader.read(0, 512).is_ok());
    assert!(!server.stop().stderr.contains("error"));
}

#[test]
fn a_client_that_left_a_listing_that_spins_gives_its_instance_back() {
    let dir = TempDir::new();
    let body = r#"
    (func (export "rbdkit:filter/names@0.1.0#list-exports") (param i32 i32) (result i32)
        (loop $l (br $l)) (unreachable))
    (func (export "rbdkit:filter/names@0.1.0#default-export") (param i32 i32) (result i32)
        (i32.store8 (i32.const 2064) (i32.const 0))
        (i32.store (i32.const 2068) (i32.const 1100))
        (i32.store (i32.const 2072) (i32.const 0))
        (i32.const 2064))
"#;
    let file = dir.file("filter.wasm", &Guest::new("spin", &["names"], body).component(0));
    let limits = ["--filter-limit", "setup=1h", "--filter-limit", "instances=1"];
    let server = Launch::new(["-v", "--wasm-filter"]).arg(file).args(limits).args(["memory", "1M"]).start();
    let listing = asks(&server, opt::LIST, &[]);
    server.wait_until("the guest computes", |server| server.cpu().is_none_or(|used| used > 200_000_000));
    drop(listing);
    assert_eq!(server.client().size, 1 << 20);
    assert!(!server.stop().stderr.contains("error"));
}

#[test]
fn a_client_that_left_while_it_waited_for_its_turn_does_not_open_the_export() {
    let dir = TempDir::new();
    let methods = ["thread_model=echo serialize_connections", "get_size=echo 1M", "open=echo >>DIR/asked"];
    let methods = methods.map(|method| method.replace("DIR", &dir.path().display().to_string()));
    let server = Launch::new(["-v", "eval"]).args(methods).start();
    let first = server.client();
    let waiting = asks(&server, opt::GO, &go("", &[]));
    server.wait_for_log("connection 2: ");
    drop(waiting);
    server.wait_for_log("connection 2: closed");
    first.disconnect();
    assert_eq!(server.client().size, 1 << 20);
    assert_eq!(lines(&dir), 2, "the first client and the last");
}
