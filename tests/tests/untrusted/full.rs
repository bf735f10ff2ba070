//! Files that may not grow, by the limit on their size (`ulimit -f`). The limit's signal would end
//! the server.

use std::os::unix::fs::PermissionsExt as _;

use rbdkit_tests::{Launch, Server, TempDir};

use crate::guest::Guest;

/// The limit on the size of a file.
const LIMIT_KIB: u64 = 1024;

/// The program under test with this limit.
fn limited(dir: &TempDir, kilobytes: u64) -> Launch {
    let program = rbdkit_tests::server::program();
    // bash counts in kilobytes; dash and POSIX count in blocks of 512 bytes.
    let script = format!("#!/bin/bash\nulimit -f {kilobytes}\nexec {} \"$@\"\n", program.display());
    let file = dir.file("limited", script.as_bytes());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).expect("a program");
    Launch::new(std::iter::empty::<&str>()).program(file)
}

/// Writes beyond the limit in steps of 64 KiB. What was acknowledged can be read, what was not is
/// an error, and the server goes on serving.
fn fills(mut server: Server) {
    const STEP: usize = 64 << 10;
    let mut client = server.client();
    let content = |nth: u64| vec![nth as u8 + 1; STEP];
    let written: Vec<bool> =
        (0..2 * LIMIT_KIB / 64).map(|nth| client.write(nth * STEP as u64, &content(nth)).is_ok()).collect();
    let within = LIMIT_KIB as usize / 64;
    assert_eq!(written, [vec![true; within], vec![false; within]].concat());
    for nth in 0..within as u64 {
        assert_eq!(client.read(nth * STEP as u64, STEP as u32), Ok(content(nth)), "what was acknowledged");
    }
    assert!(server.is_alive());
    client.disconnect();
    assert!(server.stop().status.success());
}

#[test]
fn a_scratch_file_that_may_not_grow_fails_the_writes_and_nothing_else() {
    let body = r#"
    (import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $write (param i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pread" (func $read (param i32 i64 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $write (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
            (i32.const 2048))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $read (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
            (i32.const 2048))"#;
    let dir = TempDir::new();
    let guest = dir.file("scratch.wasm", &Guest::new("scratch", &["reads", "writes"], body).component(0));
    fills(limited(&dir, LIMIT_KIB).arg("--wasm-filter").arg(guest).args(["memory", "16M"]).start());
}

#[test]
fn a_served_file_that_may_not_grow_fails_the_writes_and_nothing_else() {
    let dir = TempDir::new();
    let disk = dir.sparse_file("disk", 16 << 20);
    fills(limited(&dir, LIMIT_KIB).arg("file").arg(disk).start());
}

#[test]
fn no_room_for_a_pid_file_or_for_code_is_an_error_of_one_line() {
    let dir = TempDir::new();
    let refused = |launch: Launch| {
        let outcome = launch.args(["memory", "1M"]).try_start().err().expect("there is no room");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(": File too large"), "{}", outcome.stderr);
        outcome.stderr
    };
    assert!(refused(limited(&dir, 0)).starts_with("rbdkit: error: --pidfile: "));
    // The engine keeps the initial memory of a guest in a file of its own.
    let guest = dir.file("good.wasm", &Guest::reads("good", "", "").component(0));
    let launch = limited(&dir, 0).env("XDG_CACHE_HOME", dir.join("cache")).arg("--wasm-filter").arg(guest);
    refused(launch);
}
