//! Guests that make too many handles and buffers, or use some that are not theirs.

use super::case::Case;
use crate::guest::Guest;

const RESOURCE: &str = "export things: interface { resource thing { constructor(); } }\n";
const HANDLES: &str = r#"
    (import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
    (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
    (func (export "things#[constructor]thing") (result i32) (call $new (i32.const 7)))"#;

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
        Case::fault(
            Guest::reads("foreign-buffer", alloc, "(drop (call $len (i32.const 77)))"),
            "there is no buffer 77",
        ),
    ]
}
