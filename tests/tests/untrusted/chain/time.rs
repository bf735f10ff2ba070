//! Guests that take time: in every place where their code runs, in the layers below, in waits and
//! in locks.

use rbdkit_tests::raw::error;

use super::case::{Act, COMPUTED, Case, READ, READ_OUT, Want};
use crate::guest::Guest;

const SPIN: &str = "(loop $l (br $l))";

const LOCK: &str = r#"(import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))"#;
const TAKE: &str = "(call $lock (i32.const 2) (i64.const 0) (i64.const 4096) (i32.const 1) (i32.const 2100))";

/// An answer at 1280: one extent as long as the request.
const ANSWER_ONE_EXTENT: &str = "(i64.store (i32.const 3000) (local.get 0)) (i64.store (i32.const 3008) (local.get 1)) \
     (i32.store (i32.const 3016) (i32.const 0)) \
     (i32.store (i32.const 1280) (i32.const 0)) (i32.store (i32.const 1284) (i32.const 3000)) \
     (i32.store (i32.const 1288) (i32.const 1)) (return (i32.const 1280))";

const RESOURCE: &str = "export things: interface { resource thing { constructor(); } }\n";
const DESTRUCTOR: &str = r#"
    (import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
    (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
    (func (export "things#[constructor]thing") (result i32) (call $new (i32.const 7)))
    (func (export "things#[dtor]thing") (param i32) (loop $l (br $l)))"#;
const DROP_ONE: &str = "(call $drop (call $new (i32.const 1)))";

pub fn spinning() -> Vec<Case> {
    let flagged = |imports: &str| format!("{imports}\n(global $bad (mut i32) (i32.const 0))");
    let post_return = format!(
        r#"(func (export "cabi_post_rbdkit:filter/mapping@0.1.0#extents") (param i32)
               (if (i32.eq (local.get 0) (i32.const 1280)) (then {SPIN})))"#
    );
    vec![
        Case::fault(Guest::reads("spin-in-export", "", SPIN), COMPUTED),
        Case::fault(
            Guest::reads("spin-in-allocator", &flagged(READ), READ_OUT)
                .realloc("(if (global.get $bad) (then (loop $l (br $l)))) (i32.const 8192)"),
            COMPUTED,
        ),
        Case::new(
            Guest::mapping("spin-in-post-return", &post_return, ANSWER_ONE_EXTENT),
            Act::Extents(4096),
            Want::Error(error::EIO),
            COMPUTED,
        ),
        Case::fault(Guest::reads("spin-in-destructor", DESTRUCTOR, DROP_ONE).world(RESOURCE), COMPUTED),
        // Host calls that return at once count as the guest's time...
        Case::fault(
            Guest::reads(
                "cheap-host-calls",
                r#"(import "rbdkit:filter/server@0.1.0" "connections" (func $count (result i32)))"#,
                "(loop $l (drop (call $count)) (br $l))",
            ),
            COMPUTED,
        ),
        // ...and so do reads of the layers below, if nothing waits there.
        Case::fault(
            Guest::reads(
                "cheap-reads-below",
                "",
                "(loop $l (call $next_pread (local.get 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2100)) \
                 (br $l))",
            ),
            "it ",
        ),
        Case::fault(
            Guest::reads(
                "long-reads-below",
                r#"(import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))"#,
                "(call $alloc (i32.const 33554432) (i32.const 2100)) \
                 (loop $l (call $next_pread (i64.const 0) (i32.const 33554432) (i32.const 1) (i32.const 0) \
                     (i32.const 2100)) (br $l))",
            ),
            "it ",
        ),
    ]
}

pub fn locks() -> Vec<Case> {
    let sleep = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
    let second = "(if (i32.ne (i32.load8_u (i32.const 2100)) (i32.const 1)) (then (unreachable))) \
                  (if (i32.ne (i32.load8_u (i32.const 2101)) (i32.const 11)) (then (unreachable)))";
    vec![
        Case::fault(Guest::reads("locked-to-the-deadline", LOCK, &format!("{TAKE} {SPIN}")), COMPUTED),
        Case::fault(Guest::reads("trapped-while-locked", LOCK, &format!("{TAKE} (unreachable)")), "unreachable"),
        Case::harmless(Guest::reads("locked-twice", LOCK, &format!("{TAKE} {TAKE} {second}"))),
        // Waiting does not count as the guest's time, but no honest guest waits so often.
        Case::fault(
            Guest::reads("waits-for-ever", sleep, "(loop $l (call $sleep (i64.const 1000) (i32.const 2100)) (br $l))"),
            "it waited more than 20 times",
        )
        .limits(&["waits=20"]),
        // Returning without unlocking releases the lock as well.
        Case::harmless(Guest::reads("never-unlocked", LOCK, TAKE)),
    ]
}
