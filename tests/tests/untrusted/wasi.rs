//! The stubs of WASI: what a guest gets through them, and what it cannot get.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::{cmd, error};
use rbdkit_tests::{Launch, Server, TempDir};

use crate::guest::Guest;

/// The interfaces of WASI as a guest's author has them from the standard's packages. The host has
/// to accept any release of 0.2.
const PACKAGES: &str = r#"
}
package wasi:io@0.2.3 {
    interface error { resource error; }
    interface poll {
        resource pollable { ready: func() -> bool; block: func(); }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
    }
    interface streams {
        use error.{error};
        use poll.{pollable};
        variant stream-error { last-operation-failed(error), closed }
        resource input-stream { read: func(len: u64) -> result<list<u8>, stream-error>; }
        resource output-stream {
            write: func(contents: list<u8>) -> result<_, stream-error>;
            write-zeroes: func(len: u64) -> result<_, stream-error>;
        }
    }
}
package wasi:cli@0.2.0 {
    interface environment {
        get-environment: func() -> list<tuple<string, string>>;
        get-arguments: func() -> list<string>;
        initial-cwd: func() -> option<string>;
    }
    interface exit { exit: func(status: result); }
    interface stdin { use wasi:io/streams@0.2.3.{input-stream}; get-stdin: func() -> input-stream; }
    interface stderr { use wasi:io/streams@0.2.3.{output-stream}; get-stderr: func() -> output-stream; }
}
package wasi:clocks@0.2.99 {
    interface monotonic-clock { use wasi:io/poll@0.2.3.{pollable}; subscribe-duration: func(when: u64) -> pollable; }
}
package wasi:random@0.2.1 {
    interface random { get-random-bytes: func(len: u64) -> list<u8>; }
}
package wasi:filesystem@0.2.6 {
    interface types {
        enum error-code {
            access, would-block, already, bad-descriptor, busy, deadlock, quota, exist,
            file-too-large, illegal-byte-sequence, in-progress, interrupted, invalid, io,
            is-directory, loop, too-many-links, message-size, name-too-long, no-device, no-entry,
            no-lock, insufficient-memory, insufficient-space, not-directory, not-empty,
            not-recoverable, unsupported, no-tty, no-such-device, overflow, not-permitted, pipe,
            read-only, invalid-seek, text-file-busy, cross-device,
        }
        flags path-flags { symlink-follow }
        flags open-flags { create, directory, exclusive, truncate }
        flags descriptor-flags {
            read, write, file-integrity-sync, data-integrity-sync, requested-write-sync, mutate-directory,
        }
        resource descriptor {
            open-at: func(path-flags: path-flags, path: string, open-flags: open-flags, %flags: descriptor-flags)
                -> result<descriptor, error-code>;
        }
        // A wrong type: the function takes an error of a stream.
        filesystem-error-code: func(err: list<u64>) -> string;
    }
    interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }
}
package wasi:sockets@0.2.2 {
    interface network {
        resource network;
        enum error-code {
            unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout, concurrency-conflict,
            not-in-progress, would-block, invalid-state, new-socket-limit, address-not-bindable, address-in-use,
            remote-unreachable, connection-refused, connection-reset, connection-aborted, datagram-too-large,
            name-unresolvable, temporary-resolver-failure, permanent-resolver-failure,
        }
        enum ip-address-family { ipv4, ipv6 }
    }
    interface instance-network { use network.{network}; instance-network: func() -> network; }
    interface tcp { resource tcp-socket; }
    interface tcp-create-socket {
        use network.{error-code, ip-address-family};
        use tcp.{tcp-socket};
        create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
    }
    interface ip-name-lookup {
        use network.{network, error-code};
        resource resolve-address-stream;
        resolve-addresses: func(network: borrow<network>, name: string) -> result<resolve-address-stream, error-code>;
    }
}
world rest {
"#;

/// Imports of all interfaces. Those that a guest does not use are not in its component.
const IMPORTS: &str = r#"
    (import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))
    (import "wasi:cli/environment@0.2.0" "get-arguments" (func $arguments (param i32)))
    (import "wasi:cli/environment@0.2.0" "initial-cwd" (func $cwd (param i32)))
    (import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))
    (import "wasi:cli/stdin@0.2.0" "get-stdin" (func $stdin (result i32)))
    (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
    (import "wasi:io/streams@0.2.3" "[method]input-stream.read" (func $read (param i32 i64 i32)))
    (import "wasi:io/streams@0.2.3" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.3" "[method]output-stream.write-zeroes" (func $zeroes (param i32 i64 i32)))
    (import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop_output (param i32)))
    (import "wasi:io/poll@0.2.3" "[method]pollable.ready" (func $ready (param i32) (result i32)))
    (import "wasi:io/poll@0.2.3" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:io/poll@0.2.3" "[resource-drop]pollable" (func $drop_pollable (param i32)))
    (import "wasi:io/poll@0.2.3" "poll" (func $poll (param i32 i32 i32)))
    (import "wasi:clocks/monotonic-clock@0.2.99" "subscribe-duration" (func $timer (param i64) (result i32)))
    (import "wasi:random/random@0.2.1" "get-random-bytes" (func $random (param i64 i32)))
    (import "wasi:filesystem/preopens@0.2.6" "get-directories" (func $directories (param i32)))
    (import "wasi:filesystem/types@0.2.6" "[method]descriptor.open-at" (func $open (param i32 i32 i32 i32 i32 i32 i32)))
    (import "wasi:filesystem/types@0.2.6" "filesystem-error-code" (func $error_code (param i32 i32 i32)))
    (import "wasi:sockets/instance-network@0.2.2" "instance-network" (func $network (result i32)))
    (import "wasi:sockets/tcp-create-socket@0.2.2" "create-tcp-socket" (func $socket (param i32 i32)))
    (import "wasi:sockets/ip-name-lookup@0.2.2" "resolve-addresses" (func $resolve (param i32 i32 i32 i32)))
"#;

const WORLD: &str = r#"
    import wasi:cli/environment@0.2.0; import wasi:cli/exit@0.2.0; import wasi:cli/stdin@0.2.0;
    import wasi:cli/stderr@0.2.0;
    import wasi:io/streams@0.2.3; import wasi:io/poll@0.2.3; import wasi:clocks/monotonic-clock@0.2.99;
    import wasi:random/random@0.2.1; import wasi:filesystem/preopens@0.2.6; import wasi:filesystem/types@0.2.6;
    import wasi:sockets/instance-network@0.2.2; import wasi:sockets/tcp-create-socket@0.2.2;
    import wasi:sockets/ip-name-lookup@0.2.2;
"#;

/// A guest whose read at offset 0 runs `code`, which may use the local `$n`.
fn guest(code: &str) -> Guest {
    // The text closes the guest's world, adds the packages, and opens another world in its place.
    let world: &'static str = String::leak(format!("{WORLD}{PACKAGES}"));
    Guest::reads("wasi", IMPORTS, code).world(world)
}

fn serve(guest: &Guest, options: &[&str]) -> Server {
    let dir = TempDir::new();
    let file = dir.file("filter.wasm", &guest.component(0));
    Launch::new(["--wasm-filter"]).arg(file).args(options).args(["memory", "16M"]).start()
}

/// Code that traps unless the condition holds.
fn check(condition: &str) -> String {
    format!("(if (i32.eqz {condition}) (then (unreachable)))")
}

/// Checks that the read fails for this cause and that the next read succeeds.
fn fails(code: &str, cause: &str) {
    let server = serve(&guest(code), &[]);
    let mut client = server.client();
    assert_eq!(client.read(0, 512), Err(error::EIO), "{cause}");
    assert!(client.read(4096, 512).is_ok(), "{cause}");
    client.disconnect();
    let log = server.stop().stderr;
    let expected = format!("rbdkit: error: wasi: pread at offset 0: {cause}");
    assert!(log.lines().any(|line| line.starts_with(&expected)), "{cause}: {log}");
}

/// Checks that the read succeeds. The result is what the filter logged.
fn succeeds(code: &str, options: &[&str]) -> String {
    let server = serve(&guest(code), options);
    let mut client = server.client();
    assert!(client.read(0, 512).is_ok(), "{}", server.stderr());
    client.disconnect();
    server.stop().stderr
}

#[test]
fn there_is_no_environment_no_input_no_directory_and_no_network() {
    let empty_list = check("(i32.eqz (i32.load (i32.const 2104)))");
    let denied = check(
        "(i32.and (i32.eq (i32.load8_u (i32.const 2100)) (i32.const 1)) (i32.eq (i32.load8_u (i32.const 2104)) \
         (i32.const 1)))",
    );
    let code = [
        "(call $environment (i32.const 2100))",
        &empty_list,
        "(i32.store (i32.const 2104) (i32.const 1)) (call $arguments (i32.const 2100))",
        &empty_list,
        "(i32.store (i32.const 2104) (i32.const 1)) (call $directories (i32.const 2100))",
        &empty_list,
        "(i32.store8 (i32.const 2100) (i32.const 1)) (call $cwd (i32.const 2100))",
        &check("(i32.eqz (i32.load8_u (i32.const 2100)))"),
        // The second case of the error: closed.
        "(call $read (call $stdin) (i64.const 1000) (i32.const 2100))",
        &denied,
        // The second case of the error: access-denied.
        "(i32.store (i32.const 2100) (i32.const 0)) (i32.store (i32.const 2104) (i32.const 0))",
        "(call $socket (i32.const 0) (i32.const 2100))",
        &denied,
        "(i32.store (i32.const 2100) (i32.const 0)) (i32.store (i32.const 2104) (i32.const 0))",
        "(call $resolve (call $network) (i32.const 1100) (i32.const 4) (i32.const 2100))",
        &check("(i32.eq (i32.load8_u (i32.const 2100)) (i32.const 1))"),
        &check("(i32.eq (i32.load8_u (i32.const 2104)) (i32.const 1))"),
    ]
    .join("\n");
    let log = succeeds(&code, &[]);
    assert!(!log.contains("error"), "{log}");
}

#[test]
fn no_path_is_opened_whatever_handle_stands_for_the_directory() {
    let open = |descriptor: &str| {
        format!(
            "(call $open {descriptor} (i32.const 1) (i32.const 1100) (i32.const 4) (i32.const 0) (i32.const 1) \
             (i32.const 2100))"
        )
    };
    fails(&open("(i32.const 3)"), "unknown handle index 3");
    // A handle that exists and has another type.
    fails(&open("(call $stderr)"), "handle index 1 used with the wrong type");
}

/// The host does not check the types of functions that no code can call. That is harmless.
#[test]
fn a_function_of_another_type_is_a_fault_when_it_is_called() {
    let call = |length: u32| format!("(call $error_code (i32.const 0) (i32.const {length}) (i32.const 2100))");
    fails(&call(8), "it called filesystem-error-code with a handle that does not exist");
    // The list that the guest passes is limited like all others.
    let many = format!("(memory.grow (i32.const 200)) (drop) {}", call(1 << 20));
    fails(&many, "too much data is being copied between the host and the guest");
}

#[test]
fn exit_is_a_fault_whatever_its_status() {
    fails("(call $exit (i32.const 1))", "it called exit, as failed");
    fails("(call $exit (i32.const 0))", "it called exit, as if it had succeeded");
}

#[test]
fn a_stream_that_was_dropped_is_gone() {
    let write = "(call $write (local.get $n) (i32.const 1100) (i32.const 4) (i32.const 2100))";
    fails(
        &format!("(local.set $n (call $stderr)) {write} (call $drop_output (local.get $n)) {write}"),
        "unknown handle index 1",
    );
    fails(
        "(local.set $n (call $stderr)) (call $drop_output (local.get $n)) (call $drop_output (local.get $n))",
        "unknown handle index 1",
    );
    fails("(call $block (i32.const 0x7fffffff))", "unknown handle index 2147483647");
    fails(&format!("(local.set $n (call $timer (i64.const 1))) {write}"), "handle index 1 used with the wrong type");
}

#[test]
fn a_write_has_an_end() {
    fails(
        "(call $write (call $stderr) (i32.const 0) (i32.const 4097) (i32.const 2100))",
        "it wrote 4097 bytes to a stream at once (at most 4096)",
    );
    fails(
        "(call $zeroes (call $stderr) (i64.const -1) (i32.const 2100))",
        "it wrote 18446744073709551615 bytes to a stream at once (at most 4096)",
    );
}

#[test]
fn a_flood_without_an_end_of_line_is_one_line_of_its_allowed_length() {
    // Four million bytes that would clear a terminal's screen.
    let code = r#"
        (memory.grow (i32.const 1)) (drop)
        (loop $fill
            (i32.store (i32.add (i32.const 65536) (local.get $n)) (i32.const 0x4a325b1b))
            (local.set $n (i32.add (local.get $n) (i32.const 4)))
            (br_if $fill (i32.lt_u (local.get $n) (i32.const 4096))))
        (local.set $n (i32.const 0))
        (loop $flood
            (call $write (call $stderr) (i32.const 65536) (i32.const 4096) (i32.const 2100))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $flood (i32.lt_u (local.get $n) (i32.const 1000))))"#;
    let log = succeeds(code, &[]);
    let said: Vec<&str> = log.lines().filter(|line| line.contains("wasi: ")).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    let begin = r"wasi: \u{1b}[2J\u{1b}[2J\u{1b}[2J";
    assert!(said[0].contains(begin) && said[0].ends_with("..."), "{}", said[0]);
    assert!(said[0].len() < 1024 + 100, "{} bytes", said[0].len());
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_flood_of_lines_is_limited_as_those_of_the_log_are() {
    let code = r#"
        (memory.grow (i32.const 1)) (drop)
        (memory.fill (i32.const 65536) (i32.const 10) (i32.const 4096))
        (local.set $n (call $stderr))
        (call $write (local.get $n) (i32.const 65536) (i32.const 4096) (i32.const 2100))
        (call $write (local.get $n) (i32.const 65536) (i32.const 4096) (i32.const 2100))"#;
    let log = succeeds(code, &["--filter-limit", "log-lines=1"]);
    let said = log.lines().filter(|line| line.contains("wasi: ")).count();
    assert!((10..100).contains(&said), "{said} lines");
}

#[test]
fn random_bytes_have_an_end() {
    fails(
        "(call $random (i64.const 0x100000000) (i32.const 2100))",
        "it asked for 4294967296 random bytes at once (at most 1048576)",
    );
    // As many bytes as one call may have. They are not all the same.
    let code = [
        "(call $random (i64.const 0x100000) (i32.const 2100))",
        &check("(i32.eq (i32.load (i32.const 2104)) (i32.const 0x100000))"),
        &check("(i64.ne (i64.load (i32.load (i32.const 2100))) (i64.load offset=1048568 (i32.load (i32.const 2100))))"),
    ];
    succeeds(&code.join("\n"), &[]);
    // A guest that asks again and again is ended because of the time that it takes.
    let server = serve(
        &guest(
            "(loop $l (global.set $top (i32.const 8192)) (call $random (i64.const 0x100000) (i32.const 2100)) (br $l))",
        ),
        &["--filter-limit", "wall=500ms"],
    );
    let began = Instant::now();
    assert_eq!(server.client().read(0, 512), Err(error::EIO));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn handles_have_an_end_and_dropped_ones_do_not_count() {
    fails("(loop $l (drop (call $timer (i64.const 1))) (br $l))", "it has more than 1024 handles of WASI");
    fails("(loop $l (drop (call $network)) (br $l))", "it has more than 1024 handles of WASI");
    let code = r#"
        (loop $l
            (call $drop_pollable (call $timer (i64.const -1)))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $l (i32.lt_u (local.get $n) (i32.const 100000))))"#;
    succeeds(code, &["--filter-limit", "cpu=1m", "--filter-limit", "wall=1m"]);
}

/// Handles that one call leaves are there in the next one, as a C library's standard streams need
/// it. A fresh instance has none.
#[test]
fn handles_stay_from_call_to_call_and_end_with_their_instance() {
    let code = r#"
        (loop $l
            (drop (call $timer (i64.const -1)))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $l (i32.lt_u (local.get $n) (i32.const 100))))"#;
    let server = serve(&guest(code).model(1), &[]);
    let mut client = server.client();
    let outcomes: Vec<bool> = (0..33).map(|_| client.read(0, 512).is_ok()).collect();
    let faults: Vec<usize> = (0..33).filter(|n| !outcomes[*n]).collect();
    assert_eq!(faults, [10, 21, 32]);
}

#[test]
fn waiting_without_end_ends_with_the_client() {
    let forever = "(local.set $n (call $timer (i64.const -1)))";
    let one =
        "(i32.store (i32.const 2100) (local.get $n)) (call $poll (i32.const 2100) (i32.const 1) (i32.const 2108))";
    for wait in ["(call $block (local.get $n))", one] {
        for code in [format!("{forever} {wait}"), format!("{forever} (loop $l {wait} (br $l))")] {
            let options = ["--filter-limit", "instances=1", "--filter-limit", "cpu=1h", "--filter-limit", "wall=1h"];
            let server = serve(&guest(&code), &options);
            let (mut client, mut next) = (server.client(), server.client());
            client.submit(cmd::READ, 0, 0, 512, &[]).expect("a request");
            next.submit(cmd::READ, 0, 4096, 512, &[]).expect("a request");
            drop(client);
            assert!(next.receive().expect("a reply").result.is_ok());
            drop(next);
            assert!(server.stop().status.success());
        }
    }
}

#[test]
fn waiting_is_counted_and_what_is_ready_comes_back_with_its_place() {
    // Two timers of an hour, and one of a millisecond between them.
    let hour = "(call $timer (i64.const 3600000000000))";
    let code = [
        &format!("(i32.store (i32.const 2100) {hour})"),
        "(i32.store (i32.const 2104) (call $timer (i64.const 1000000)))",
        &format!("(i32.store (i32.const 2108) {hour})"),
        &check("(i32.eqz (call $ready (i32.load (i32.const 2100))))"),
        "(call $poll (i32.const 2100) (i32.const 3) (i32.const 2120))",
        &check("(i32.eq (i32.load (i32.const 2124)) (i32.const 1))"),
        &check("(i32.eq (i32.load (i32.load (i32.const 2120))) (i32.const 1))"),
        &check("(call $ready (i32.load (i32.const 2104)))"),
    ];
    succeeds(&code.join("\n"), &[]);
    fails("(call $poll (i32.const 2100) (i32.const 0) (i32.const 2108))", "it waits for nothing (wasi:io/poll)");
    let code = "(loop $l (local.set $n (call $timer (i64.const 1000000))) (call $block (local.get $n)) \
     (call $drop_pollable (local.get $n)) (br $l))";
    let server = serve(&guest(code), &["--filter-limit", "waits=100"]);
    assert_eq!(server.client().read(0, 512), Err(error::EIO));
    let log = server.stop().stderr;
    assert!(log.contains("wasi: pread at offset 0: it waited more than 100 times"), "{log}");
}

/// There is nobody to wait for in `configure`, so a wait returns at once. It neither hangs nor ends
/// the server.
#[test]
fn waiting_before_there_is_a_client_is_over_at_once() {
    let configure = "(call $block (call $timer (i64.const 3600000000000))) (i32.const 1200)";
    let server = serve(&Guest { configure, ..guest("") }, &[]);
    assert!(server.client().read(0, 512).is_ok());
}
