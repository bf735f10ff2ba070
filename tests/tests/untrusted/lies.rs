//! Answers that are not about data: sizes and abilities that change, texts without end, a flush
//! that did nothing, layers that multiply what they are asked. A layer is held to what it said when
//! a connection was opened, and the layers below it do what they can and no more.

use std::time::Duration;

use rbdkit_tests::raw::{Stream, can, cmd, error, flag, go, opt, rep};
use rbdkit_tests::{Launch, Server, TempDir};

use crate::guest::Guest;

const MIB: u64 = 1 << 20;

/// A chain of the filters named in `above`, below them these guests, and this plugin with its
/// arguments.
fn serve(above: &[&str], guests: &[&Guest], plugin: &[&str]) -> Server {
    let dir = TempDir::new();
    let mut launch = Launch::new(["-v"]).args(above.iter().map(|name| format!("--filter={name}")));
    for (nth, guest) in guests.iter().enumerate() {
        let file = dir.file(&format!("{nth}.wasm"), &guest.component(0));
        launch = launch.arg("--wasm-filter").arg(file);
    }
    launch.args(plugin).start()
}

/// A guest that exports `info`. `size` is code that leaves its size on the stack.
fn sized(name: &str, size: &str) -> Guest {
    let body = format!(
        r#"
    (global $asked (mut i64) (i64.const 0))
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (i32.store (i32.const 3000) (i32.const 0))
        (i64.store (i32.const 3008) {size})
        (global.set $asked (i64.add (global.get $asked) (i64.const 1)))
        (i32.const 3000))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32)
        (i32.store8 (i32.const 3100) (i32.const 1))
        (i32.store8 (i32.const 3104) (i32.const 7))
        (i32.const 3100))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32) (i32.const 1200))
"#
    );
    // One instance, because it counts.
    Guest::new(name, &["info"], &body).model(1)
}

/// Its size is 4, 8 and 16 MiB in turn.
fn changing_size() -> Guest {
    sized("size", "(i64.shl (i64.const 4194304) (i64.rem_u (global.get $asked) (i64.const 3)))")
}

/// The type of the last reply to GO for the default export.
fn opens(server: &Server) -> u32 {
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::GO, &go("", &[])).expect("GO");
    stream.option_replies(opt::GO).expect("replies").0
}

#[test]
fn each_connection_keeps_the_size_it_was_told_though_it_changes() {
    let server = serve(&[], &[&changing_size()], &["memory", "8M"]);
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    assert_eq!(clients.iter().map(|client| client.size / MIB).collect::<Vec<_>>(), [4, 8, 16, 4]);
    for _ in 0..2 {
        for client in &mut clients {
            let size = client.size;
            // The layer below has 8 MiB, whatever the filter says.
            for at in [0, 4 * MIB - 512, 4 * MIB, 8 * MIB - 512, 8 * MIB, 16 * MIB - 512, 16 * MIB] {
                let right = if at < size.min(8 * MIB) { Ok(vec![0; 512]) } else { Err(error::EINVAL) };
                assert_eq!(client.read(at, 512), right, "at {at} of {size}");
            }
        }
    }
    assert!(!server.stop().stderr.contains("error: size: "), "it is logged as a fault");
}

#[test]
fn filters_above_a_size_that_changes_keep_to_what_they_were_told() {
    let server = serve(&["readahead", "cache", "cow"], &[&changing_size()], &["memory", "16M"]);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    for (nth, client) in clients.iter_mut().enumerate() {
        let last = client.size - 65536;
        client.write(last, &[nth as u8 + 1; 65536]).expect("a write at the end");
        assert_eq!(client.read(last, 65536), Ok(vec![nth as u8 + 1; 65536]));
    }
    // All clients see the same disk, each as much of it as it was told.
    let mut again: Vec<_> = (0..3).map(|_| server.client()).collect();
    for client in &mut again {
        let size = client.size;
        for (nth, end) in [4 * MIB, 8 * MIB, 16 * MIB].into_iter().enumerate().filter(|(_, end)| *end <= size) {
            assert_eq!(client.read(end - 65536, 65536), Ok(vec![nth as u8 + 1; 65536]));
        }
        assert_eq!(
            client.write(client.size, &[0; 512]).map_err(|e| [error::EINVAL, error::ENOSPC].contains(&e)),
            Err(true)
        );
    }
    let outcome = server.stop();
    assert!(outcome.status.success() && !outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[test]
fn while_a_connection_is_open_the_layer_below_has_one_size() {
    // It traps as soon as the size of next has changed.
    let watcher = Guest::reads(
        "watcher",
        r#"(import "rbdkit:filter/next@0.1.0" "get-size" (func $size (param i32)))
           (global $seen (mut i64) (i64.const 0))"#,
        "(call $size (i32.const 2200)) \
         (if (i64.eqz (global.get $seen)) (then (global.set $seen (i64.load (i32.const 2208))))) \
         (if (i64.ne (global.get $seen) (i64.load (i32.const 2208))) (then (unreachable)))",
    );
    // Each connection has an instance of its own.
    let server = serve(&[], &[&watcher.model(2), &changing_size()], &["memory", "16M"]);
    let mut first = server.client();
    for _ in 0..5 {
        assert_eq!(first.read(0, 512), Ok(vec![0; 512]));
        server.client().read(0, 512).expect("a read of another size");
    }
    assert_eq!(first.size, 4 * MIB);
}

#[test]
fn an_impossible_size_fails_the_opening_and_an_impossible_block_size_or_description_is_none() {
    let large = serve(&[], &[&sized("large", "(i64.const -1)")], &["memory", "1M"]);
    let body = r#"
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (i64.store (i32.const 3008) (i64.const 65536)) (i32.const 3000))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32)
        (i32.store (i32.const 3104) (i32.const 3)) (i32.store (i32.const 3108) (i32.const 5))
        (i32.store (i32.const 3112) (i32.const 7)) (i32.const 3100))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32) (i32.const 1200))"#;
    let blocks = serve(&[], &[&Guest::new("blocks", &["info"], body)], &["memory", "1M"]);
    let text = r#"
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (i64.store (i32.const 3008) (i64.const 65536)) (i32.const 3000))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32)
        (i32.store8 (i32.const 3100) (i32.const 1)) (i32.store8 (i32.const 3104) (i32.const 7)) (i32.const 3100))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32)
        (drop (memory.grow (i32.const 960)))
        (i32.store (i32.const 3200) (i32.const 1)) (i32.store (i32.const 3208) (i32.const LENGTH)) (i32.const 3200))"#;
    let text = |name, length| Guest::new(name, &["info"], &text.replace("LENGTH", length));
    let long = serve(&[], &[&text("long", "60000000")], &["memory", "1M"]);
    let beyond = serve(&[], &[&text("beyond", "-1")], &["memory", "1M"]);
    for _ in 0..3 {
        assert_ne!(opens(&large), rep::ACK);
    }
    large.wait_for_log("large: size 18446744073709551615 is beyond 2^63 - 1");
    assert!(large.stop().status.success());
    for (server, why) in [
        (blocks, "blocks: impossible block sizes"),
        (long, "long: export-description: "),
        (beyond, "beyond: export-description: "),
    ] {
        for _ in 0..3 {
            let mut stream = Stream::connect(server.socket());
            stream.greet(3).expect("a greeting");
            // 2 asks for the description, 3 for the block sizes. Neither is told.
            stream.option(opt::GO, &go("", &[2, 3])).expect("GO");
            let (end, told) = stream.option_replies(opt::GO).expect("replies");
            assert_eq!((end, told.len()), (rep::ACK, 1), "{why}: {told:?}");
        }
        server.wait_for_log(why);
        assert!(server.stop().status.success());
    }
}

#[test]
fn export_names_without_end_fail_the_list() {
    // Lists with as many entries as the guest's memory holds, with a name as long as that, and one
    // outside of its memory.
    let names = |name, list: &str| {
        let body = format!(
            r#"
    (func (export "rbdkit:filter/names@0.1.0#list-exports") (param i32 i32) (result i32)
        (drop (memory.grow (i32.const 960)))
        (i32.store (i32.const 3000) (i32.const 0)) {list} (i32.const 3000))
    (func (export "rbdkit:filter/names@0.1.0#default-export") (param i32 i32) (result i32)
        (i32.store (i32.const 3000) (i32.const 0)) {list} (i32.const 3000))"#
        );
        Guest::new(name, &["names"], &body)
    };
    let many = names(
        "many",
        "(i32.store (i32.const 3004) (i32.const 65536)) (i32.store (i32.const 3008) (i32.const 3000000))",
    );
    let beyond =
        names("beyond", "(i32.store (i32.const 3004) (i32.const 0)) (i32.store (i32.const 3008) (i32.const -1))");
    for guest in [many, beyond] {
        let server = serve(&[], &[&guest], &["memory", "1M"]);
        let mut stream = Stream::connect(server.socket());
        stream.greet(3).expect("a greeting");
        stream.option(opt::LIST, &[]).expect("LIST");
        assert_ne!(stream.option_replies(opt::LIST).expect("replies").0, rep::ACK, "{}", guest.name);
        server.wait_for_log(&format!("{}: list-exports: ", guest.name));
        assert!(server.stop().status.success());
    }
}

#[test]
fn texts_that_the_protocol_cannot_carry_are_cut_or_left_out() {
    // Two names of exports and a description. One of the names and the description contain a NUL.
    let body = r#"
    (data (i32.const 3200) "good\00bad")
    (func (export "rbdkit:filter/names@0.1.0#list-exports") (param i32 i32) (result i32)
        (i32.store (i32.const 3000) (i32.const 0)) (i32.store (i32.const 3004) (i32.const 3300))
            (i32.store (i32.const 3008) (i32.const 2))
        (i32.store (i32.const 3300) (i32.const 3200)) (i32.store (i32.const 3304) (i32.const 8))
            (i32.store (i32.const 3308) (i32.const 0))
        (i32.store (i32.const 3320) (i32.const 3200)) (i32.store (i32.const 3324) (i32.const 4))
            (i32.store (i32.const 3328) (i32.const 0))
        (i32.const 3000))
    (func (export "rbdkit:filter/names@0.1.0#default-export") (param i32 i32) (result i32)
        (i32.store (i32.const 3000) (i32.const 0)) (i32.store (i32.const 3004) (i32.const 3200))
            (i32.store (i32.const 3008) (i32.const 8))
        (i32.const 3000))
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (i32.store (i32.const 3000) (i32.const 0)) (i64.store (i32.const 3008) (i64.const 1048576)) (i32.const 3000))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32)
        (i32.store8 (i32.const 3100) (i32.const 1)) (i32.store8 (i32.const 3104) (i32.const 7)) (i32.const 3100))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32)
        (i32.store8 (i32.const 3048) (i32.const 1)) (i32.store (i32.const 3052) (i32.const 3200))
        (i32.store (i32.const 3056) (i32.const 8)) (i32.const 3048))"#;
    let server = serve(&[], &[&Guest::new("nul", &["names", "info"], body)], &["memory", "1M"]);
    let mut stream = Stream::connect(server.socket());
    stream.greet(3).expect("a greeting");
    stream.option(opt::LIST, &[]).expect("LIST");
    let (end, listed) = stream.option_replies(opt::LIST).expect("replies");
    let names: Vec<&[u8]> = listed.iter().map(|(_, data)| &data[4..]).collect();
    assert_eq!((end, names), (rep::ACK, vec![&b"good"[..]]));
    // 1 asks for the name, 2 for the description.
    stream.option(opt::GO, &go("good", &[1, 2])).expect("GO");
    let (end, told) = stream.option_replies(opt::GO).expect("replies");
    assert_eq!(end, rep::ACK);
    assert!(told.iter().any(|(_, data)| data == b"\0\x02good"), "the description up to the NUL");
}

/// Its `can` answers in turn: everything natively, and nothing.
fn changing_can(exports: &[&'static str], more: &str) -> Guest {
    let body = format!(
        r#"
    (global $asked (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/features@0.1.0#can")
        (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
        (global.set $asked (i32.xor (global.get $asked) (i32.const 1)))
        (i32.store8 (i32.const 3000) (i32.const 0))
        (memory.fill (i32.const 3001) (global.get $asked) (i32.const 7))
        (memory.fill (i32.const 3008) (i32.mul (i32.const 2) (global.get $asked)) (i32.const 3))
        (i32.const 3000))
    {more}"#
    );
    let exports: Vec<&'static str> = [&["features"], exports].concat();
    Guest::new("can", &exports, &body).model(1)
}

#[test]
fn each_connection_keeps_the_abilities_it_was_told_though_they_change() {
    let server = serve(&[], &[&changing_can(&[], "")], &["memory", "1M"]);
    let (mut all, mut none, mut all_again) = (server.client(), server.client(), server.client());
    let offered = can::FLUSH | can::FUA | can::TRIM | can::WRITE_ZEROES | can::CACHE | can::FAST_ZERO;
    for client in [&all, &all_again] {
        assert_eq!(client.flags & (offered | can::READ_ONLY), offered);
    }
    assert_eq!(none.flags & (offered | can::READ_ONLY), can::READ_ONLY);
    for (nth, client) in [&mut all, &mut all_again].into_iter().enumerate() {
        let fill = vec![nth as u8 + 1; 4096];
        assert_eq!(client.write(0, &fill), Ok(()));
        assert_eq!(client.read(0, 4096), Ok(fill));
        for (command, flags) in [(cmd::TRIM, 0), (cmd::WRITE_ZEROES, 0), (cmd::WRITE_ZEROES, flag::FAST_ZERO)] {
            assert!(client.call(command, flags, 8192, 4096, &[]).result.is_ok(), "{command}");
        }
        assert!(client.call(cmd::FLUSH, 0, 0, 0, &[]).result.is_ok());
    }
    // The client that was told of no abilities gets none, although another one has them.
    assert_eq!(none.write(0, &[9; 4096]), Err(error::EPERM));
    assert_eq!(none.read(0, 4096), Ok(vec![2; 4096]));
    assert!(!server.stop().stderr.contains("error: can: "), "it is logged as a fault");
}

#[test]
fn abilities_that_next_does_not_have_are_withdrawn_and_the_log_says_so() {
    // A disk that is read-only, below a filter that says it can do everything.
    let server = serve(&[], &[&changing_can(&[], "")], &["pattern", "1M"]);
    let mut client = server.client();
    assert!(client.can(can::READ_ONLY));
    for lie in ["it can write", "it can trim", "zero is native"] {
        server.wait_for_log(&format!("can: can: it says that {lie}"));
    }
    assert_eq!(client.write(0, &[1; 512]), Err(error::EPERM));
    assert_eq!(client.read(8, 8), Ok(8u64.to_be_bytes().to_vec()));
}

#[test]
fn a_filter_that_writes_where_next_cannot_be_written_gets_its_error() {
    let writes = r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
    let server = serve(&[], &[&changing_can(&["writes"], writes)], &["pattern", "1M"]);
    let mut client = server.client();
    assert!(!client.can(can::READ_ONLY), "a filter may keep written data elsewhere");
    assert_eq!(client.write(0, &[1; 512]), Err(error::EPERM));
    assert_eq!(client.read(0, 8), Ok(vec![0; 8]));
}

/// A guest that answers every flush with success and does nothing.
fn flush_of_nothing() -> Guest {
    let body = r#"(func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32) (i32.const 1200))"#;
    Guest::new("flush", &["flushes"], body)
}

#[test]
fn a_flush_that_a_filter_only_claims_ends_at_its_layer_and_is_no_fault() {
    let dir = TempDir::new();
    let (below, disk) = (dir.file("flushes", b""), dir.sparse_file("disk", MIB));
    let plugin = |name: &str| {
        let script = format!("echo f >>{}", below.display());
        let disk = disk.display();
        vec![
            name.to_owned(),
            "get_size=echo 1048576".to_owned(),
            format!("pread=dd if={disk} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none"),
            format!("pwrite=dd of={disk} seek=$4 conv=notrunc oflag=seek_bytes status=none"),
            "can_write=exit 0".to_owned(),
            "can_flush=exit 0".to_owned(),
            format!("flush={script}"),
        ]
    };
    let flushes = || std::fs::read_to_string(&below).expect("the file").lines().count();
    let eval = plugin("eval");
    let eval: Vec<&str> = eval.iter().map(String::as_str).collect();
    // For comparison: without the guest a flush is one flush below, and a write with FUA is a write
    // and a flush.
    let server = serve(&["nofilter"], &[], &eval);
    let mut client = server.client();
    client.write(0, &[1; 512]).expect("a write");
    assert!(client.call(cmd::FLUSH, 0, 0, 0, &[]).result.is_ok());
    assert_eq!(flushes(), 1);
    assert!(client.call(cmd::WRITE, flag::FUA, 0, 512, &[2; 512]).result.is_ok());
    assert_eq!(flushes(), 2);
    client.disconnect();
    assert!(server.stop().status.success());

    let server = serve(&["nofilter"], &[&flush_of_nothing()], &eval);
    let mut client = server.client();
    let before = flushes();
    client.write(4096, &[3; 512]).expect("a write");
    assert!(client.call(cmd::FLUSH, 0, 0, 0, &[]).result.is_ok(), "the filter claims success");
    assert_eq!(flushes(), before, "nothing was flushed");
    // The data can be read. It would be lost only if the machine lost its power.
    assert_eq!(client.read(4096, 512), Ok(vec![3; 512]));
    client.disconnect();
    let outcome = server.stop();
    assert!(outcome.status.success() && !outcome.stderr.contains("error: flush: "), "{}", outcome.stderr);
    assert_eq!(std::fs::read(&disk).expect("the disk")[4096], 3);
}

#[test]
fn a_filter_that_drops_writes_and_claims_to_flush_loses_only_its_own_writes() {
    let dir = TempDir::new();
    let disk = dir.file("disk", &vec![1; MIB as usize]);
    let path = format!("file={}", disk.display());
    let body = r#"
    (func (export "rbdkit:filter/flushes@0.1.0#flush") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    let liar = Guest::new("liar", &["flushes", "writes"], body);
    // A cow above the guest has its own copy. Writes that pass both are lost.
    let server = serve(&[], &[&liar], &["file", &path]);
    let mut client = server.client();
    assert_eq!(client.write(0, &[2; 4096]), Ok(()));
    assert!(client.call(cmd::FLUSH, 0, 0, 0, &[]).result.is_ok());
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]), "the dropped write is nowhere");
    client.disconnect();
    assert!(server.stop().status.success());
    let server = serve(&["cow"], &[&liar], &["file", &path]);
    let mut client = server.client();
    assert_eq!(client.write(0, &[2; 4096]), Ok(()));
    assert!(client.call(cmd::FLUSH, 0, 0, 0, &[]).result.is_ok());
    assert_eq!(client.read(0, 4096), Ok(vec![2; 4096]), "the layer above has its own copy");
    client.disconnect();
    let outcome = server.stop();
    assert!(outcome.status.success() && !outcome.stderr.contains("error: liar: "), "{}", outcome.stderr);
    assert_eq!(std::fs::read(&disk).expect("the disk"), vec![1; MIB as usize]);
}

#[test]
fn a_filter_can_open_next_only_once() {
    // Names of exports, its own among them: a filter cannot reach itself through next.
    let body = r#"
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (data (i32.const 2200) "opens")
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (local $n i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2100))
        (if (i32.load8_u (i32.const 2100)) (then (unreachable)))
        (loop $again
            (call $open (local.get 0) (i32.const 2200) (i32.const 5) (i32.const 2100))
            (if (i32.ne (i32.load8_u (i32.const 2101)) (i32.const 4)) (then (unreachable)))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $n) (i32.const 1000))))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))"#;
    let server = serve(&[], &[&Guest::new("opens", &["connection"], body)], &["memory", "1M"]);
    assert_eq!(server.client().read(0, 512), Ok(vec![0; 512]));
    assert!(!server.stop().stderr.contains("error: opens: "));
}

#[test]
fn a_component_that_stands_below_itself_many_times_delays_only_its_own_client() {
    // Each of twelve filters passes a read on eight times, which makes 2^36 reads of the plugin.
    // None of them does too much by itself.
    let more = "(call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2100)) ".repeat(7);
    let guest = Guest::reads("again", "", &more);
    let dir = TempDir::new();
    let file = dir.file("again.wasm", &guest.component(0));
    let launch = (0..12).fold(Launch::new([] as [&str; 0]), |launch, _| launch.arg("--wasm-filter").arg(&file));
    let server = launch.args(["memory", "1M"]).start();
    let (mut attacker, mut bystander) = (server.client(), server.client());
    attacker.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
    for _ in 0..100 {
        assert_eq!(bystander.read(4096, 512), Ok(vec![0; 512]));
    }
    // The reads end with their client. After that no thread computes.
    drop(attacker);
    server.wait_until("nothing computes", |server| {
        let before = server.cpu();
        std::thread::park_timeout(Duration::from_millis(300));
        // A tenth of the time is allowed, because the clock's thread goes on.
        before.zip(server.cpu()).is_none_or(|(before, after)| after < before + 30_000_000)
    });
    assert_eq!(bystander.read(4096, 512), Ok(vec![0; 512]));
    assert!(server.stop().status.success());
}

#[test]
fn a_payload_may_be_written_in_one_piece_however_long_it_is() {
    let all = r#"
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))"#;
    let code = "(drop (memory.grow (i32.const 400))) (memory.fill (i32.const 65536) (i32.const 7) (local.get 1)) \
                (call $write (i32.const 0) (i32.const 0) (i32.const 65536) (local.get 1)) (return (i32.const 1200))";
    let server = serve(&[], &[&Guest::reads("whole", all, code)], &["memory", "64M"]);
    let mut client = server.client();
    for length in [512, 24 << 20, 512] {
        assert_eq!(client.read(0, length), Ok(vec![7; length as usize]));
    }
}
