//! Guests that flood what the host keeps for them: the log, prefetches, scratch files, maps.

use rbdkit_tests::raw::error;

use super::case::{Act, Case, LOG, Want};
use crate::guest::Guest;

pub fn floods() -> Vec<Case> {
    vec![
        Case::new(
            Guest::reads(
                "log-flood",
                &format!("{LOG}\n(data (i32.const 2200) \"x\\0a\\1b[2Jrbdkit: error: I am the host\\07\\c2\\9b\")"),
                "(loop $l (call $log (i32.const 2200) (i32.const 37)) \
                 (local.set $n (i32.add (local.get $n) (i32.const 1))) \
                 (br_if $l (i32.lt_u (local.get $n) (i32.const 20000))))",
            ),
            Act::Read(4096),
            Want::Right,
            "x\\n\\u{1b}[2Jrbdkit: error: I am the host",
        )
        .limits(&["log-lines=10", "cpu=10s"]),
        Case::harmless(Guest::reads(
            "prefetch-flood",
            r#"(import "rbdkit:filter/next@0.1.0" "prefetch" (func $prefetch (param i64 i64) (result i32)))"#,
            "(loop $l (drop (call $prefetch (i64.mul (i64.extend_i32_u (local.get $n)) (i64.const 131072)) \
             (i64.const 65536))) \
             (local.set $n (i32.add (local.get $n) (i32.const 1))) \
             (br_if $l (i32.lt_u (local.get $n) (i32.const 20000)))) \
             (drop (call $prefetch (i64.const -1) (i64.const -1))) \
             (drop (call $prefetch (i64.const 0) (i64.const -1))) \
             (drop (call $prefetch (i64.const 0) (i64.const 0))) \
             (if (call $prefetch (i64.const 0x7fffffffffffffff) (i64.const 1)) (then (unreachable)))",
        )),
        // At the quota the guest passes on the host's error.
        Case::new(
            Guest::writes(
                "scratch-flood",
                r#"(import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $scratch (param i32 i64 i32 i32 i32 i32)))
                   (global $at (mut i64) (i64.const 0))"#,
                "(loop $l (call $scratch (i32.const 0) (global.get $at) (local.get 1) (i32.const 0) \
                 (i32.const 0) (i32.const 2100)) \
                 (global.set $at (i64.add (global.get $at) (i64.const 4096))) \
                 (br_if $l (i32.eqz (i32.load8_u (i32.const 2100))))) (return (i32.const 2100))",
            ),
            Act::Write(4096),
            Want::Error(error::ENOSPC),
            "",
        )
        .limits(&["scratch=1M"]),
        // An offset far beyond any file.
        Case::new(
            Guest::writes(
                "scratch-beyond",
                r#"(import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $scratch (param i32 i64 i32 i32 i32 i32)))"#,
                "(call $scratch (i32.const 0) (i64.const -4096) (local.get 1) (i32.const 0) (i32.const 0) \
                 (i32.const 2100)) \
                 (return (i32.const 2100))",
            ),
            Act::Write(4096),
            Want::Error(error::EINVAL),
            "",
        ),
        // Blocks far apart, so that no two neighbours can share one entry.
        Case::fault(
            Guest::reads(
                "map-flood",
                r#"
                (import "rbdkit:filter/maps@0.1.0" "resize" (func $resize (param i32 i32 i32 i64 i32)))
                (import "rbdkit:filter/maps@0.1.0" "set" (func $set (param i32 i32 i64 i64 i32 i32 i32) (result i64)))
                (global $at (mut i64) (i64.const 0))"#,
                "(call $resize (i32.const 0) (i32.const 0) (i32.const 512) (i64.const 0x3fffffffffffffff) \
                 (i32.const 2100)) \
                 (loop $l (drop (call $set (i32.const 0) (i32.const 0) (global.get $at) (i64.const 1) (i32.const 15) \
                     (i32.const 1) (i32.const 0))) \
                 (global.set $at (i64.add (global.get $at) (i64.const 100003))) (br $l))",
            ),
            "memory for maps is used up",
        )
        .limits(&["maps=1M", "cpu=10s"]),
    ]
}
