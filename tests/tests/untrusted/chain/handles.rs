//! Guests that make too many handles and buffers, or use some that are not theirs.

use super::case::Case;
use crate::guest::Guest;

const RESOURCE: &str = "export things: interface { resource thing { constructor(); } }\n";
const HANDLES: &str = r#"
    (import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
    (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
    (func (export "things#[constructor]thing") (result i32) (call $new (i32.const 7)))"#;

const BYTES: &str = r#"
    (import "rbdkit:filter/buffer@0.1.0" "swap" (func $swap (param i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "mismatch" (func $mismatch (param i32 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/buffer@0.1.0" "crc32c" (func $crc (param i32 i32 i32 i32) (result i32)))
    (import "rbdkit:filter/buffer@0.1.0" "sha256" (func $sha (param i32 i32 i32 i32)))"#;

pub fn handles() -> Vec<Case> {
    let own = |name: &str, code: &str| Guest::reads(name, HANDLES, code).world(RESOURCE);
    let alloc = r#"
        (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
        (import "rbdkit:filter/buffer@0.1.0" "free" (func $free (param i32)))
        (import "rbdkit:filter/buffer@0.1.0" "len" (func $len (param i32) (result i32)))"#;
    vec![
        Case::fault(own("a-million-handles", "(loop $l (drop (call $new (i32.const 1))) (br $l))"), "handle"),
        Case::fault(
            own(
                "stale-handle",
                "(local.set $n (call $new (i32.const 1))) (call $drop (local.get $n)) (call $drop (local.get $n))",
            ),
            "handle",
        ),
        Case::fault(own("foreign-handle", "(call $drop (i32.const 12345))"), "handle"),
        // A call may have 1024 buffers; the next one fails with ENOMEM.
        Case::harmless(Guest::reads(
            "a-million-buffers",
            alloc,
            "(loop $l (call $alloc (i32.const 1) (i32.const 2100)) (local.set $n (i32.add (local.get $n) \
             (i32.const 1))) \
             (br_if $l (i32.eqz (i32.load8_u (i32.const 2100))))) \
             (if (i32.ne (local.get $n) (i32.const 1025)) (then (unreachable)))",
        )),
        // More bytes than `--filter-limit buffers=` allows, and a buffer longer than any request.
        Case::harmless(Guest::reads(
            "large-buffers",
            alloc,
            "(call $alloc (i32.const 40000000) (i32.const 2100)) \
             (if (i32.load8_u (i32.const 2100)) (then (unreachable))) \
             (call $alloc (i32.const 40000000) (i32.const 2100)) \
             (if (i32.ne (i32.load8_u (i32.const 2104)) (i32.const 3)) (then (unreachable))) \
             (call $alloc (i32.const -1) (i32.const 2100)) \
             (if (i32.ne (i32.load8_u (i32.const 2104)) (i32.const 4)) (then (unreachable)))",
        )),
        Case::fault(
            Guest::reads(
                "stale-buffer",
                alloc,
                "(call $alloc (i32.const 1) (i32.const 2100)) (call $free (i32.const 1)) (call $free (i32.const 1))",
            ),
            "there is no buffer 1",
        ),
        Case::harmless(Guest::reads(
            "opens-shared-in-a-read",
            r#"(import "rbdkit:filter/next-open@0.1.0" "open-shared" (func $share (param i32 i32 i32 i32)))"#,
            "(call $share (i32.const 0) (i32.const 1100) (i32.const 1) (i32.const 2100)) \
             (if (i32.ne (i32.load16_u (i32.const 2100)) (i32.const 0x0c01)) (then (unreachable)))",
        )),
        Case::fault(
            Guest::reads("swaps-thirds", BYTES, "(call $swap (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 3))"),
            "buffer.swap of groups of 3 bytes, which must be 2, 4 or 8",
        ),
        Case::fault(
            Guest::reads("swaps-halves", BYTES, "(call $swap (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 8))"),
            "buffer.swap of 9 bytes, which is no multiple of 8",
        ),
        Case::fault(
            Guest::reads(
                "swaps-beyond",
                BYTES,
                "(call $swap (i32.const 0) (i32.const 4095) (i32.const -8) (i32.const 8))",
            ),
            "4294967288 bytes at 4095 are not within buffer 0 of 4096",
        ),
        Case::fault(
            Guest::reads(
                "compares-beyond",
                BYTES,
                "(call $mismatch (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 2) \
                 (i32.const 2100))",
            ),
            "are not within buffer 0 of 4096",
        ),
        Case::fault(
            Guest::reads(
                "sums-beyond",
                BYTES,
                "(drop (call $crc (i32.const 0) (i32.const 1) (i32.const 4096) (i32.const 0)))",
            ),
            "4096 bytes at 1 are not within buffer 0 of 4096",
        ),
        Case::fault(
            Guest::reads(
                "sums-a-buffer-of-nobody",
                BYTES,
                "(call $sha (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 2100))",
            ),
            "there is no buffer 7",
        ),
        Case::fault(
            Guest::reads("foreign-buffer", alloc, "(drop (call $len (i32.const 77)))"),
            "there is no buffer 77",
        ),
    ]
}
