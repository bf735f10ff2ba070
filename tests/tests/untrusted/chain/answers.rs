//! Guests whose answers are wrong, or that call the host at the wrong time or with a place that
//! does not exist.

use rbdkit_tests::raw::error;

use super::case::{Act, Case, Want};
use crate::guest::Guest;

pub fn lies() -> Vec<Case> {
    let done = "(return (i32.const 1200))";
    let extents = |name: &str, from: &str, length: &str, count: &str| {
        Guest::mapping(
            name,
            "",
            &format!(
                "(i64.store (i32.const 3000) {from}) (i64.store (i32.const 3008) {length}) \
                 (i64.store (i32.const 3024) {from}) (i64.store (i32.const 3032) {length}) \
                 (i32.store (i32.const 1280) (i32.const 0)) (i32.store (i32.const 1284) (i32.const 3000)) \
                 (i32.store (i32.const 1288) {count}) (return (i32.const 1280))"
            ),
        )
    };
    let lie = |guest: Guest, log| Case::new(guest, Act::Extents(65536), Want::Error(error::EIO), log);
    let start = "(local.get 0)";
    vec![
        // The guest fills nothing, so the client gets zeroes and never old bytes.
        Case::new(Guest::reads("reads-nothing", "", done), Act::Read(4096), Want::Zeroes, ""),
        Case::new(
            Guest::reads(
                "reads-half",
                "",
                &format!(
                    "(call $next_pread (local.get 0) (i32.const 1) (i32.const 0) (i32.const 4095) \
                     (i32.const 2100)) {done}"
                ),
            ),
            Act::Read(4095),
            Want::Error(error::EIO),
            "1 bytes at 4095 are not within buffer 0 of 4095",
        ),
        Case::fault(
            Guest::reads(
                "reads-too-much",
                "",
                "(call $next_pread (local.get 0) (i32.const 4097) (i32.const 0) (i32.const 0) (i32.const 2100))",
            ),
            "4097 bytes at 0 are not within buffer 0 of 4096",
        ),
        // A read past the end of the layer below is an ordinary error, which the guest answers.
        Case::new(
            Guest::reads(
                "reads-past-the-end",
                "",
                "(call $next_pread (i64.const -4096) (i32.const 4096) (i32.const 0) (i32.const 0) \
                 (i32.const 2100)) (return (i32.const 2100))",
            ),
            Act::Read(4096),
            Want::Error(error::EINVAL),
            "",
        ),
        Case::fault(
            Guest::reads(
                "answers-nonsense",
                "",
                "(i32.store8 (i32.const 2100) (i32.const 9)) (return (i32.const 2100))",
            ),
            "invalid",
        ),
        Case::fault(
            Guest::reads(
                "errno-nonsense",
                "",
                "(i32.store16 (i32.const 2100) (i32.const 0xff01)) (return (i32.const 2100))",
            ),
            "unexpected discriminant",
        ),
        Case::fault(Guest::reads("answers-out-of-bounds", "", "(return (i32.const -4))"), "out of bounds"),
        lie(extents("extents-empty", start, "(i64.const 65536)", "(i32.const 0)"), "extents"),
        lie(extents("extents-length-0", start, "(i64.const 0)", "(i32.const 1)"), "extents"),
        lie(extents("extents-overlap", start, "(i64.const 4096)", "(i32.const 2)"), "extents"),
        lie(extents("extents-elsewhere", "(i64.const 512)", "(i64.const 65536)", "(i32.const 1)"), "extents"),
        lie(extents("extents-overflow", start, "(i64.const -1)", "(i32.const 1)"), "extents"),
        lie(extents("extents-a-hundred-million", start, "(i64.const 1)", "(i32.const 100000000)"), "out of bounds"),
        // The extent reaches past the end of the export and is cut there.
        Case::new(
            extents("extents-past-the-end", start, "(i64.const 0x7fffffff0000)", "(i32.const 1)"),
            Act::Extents(65536),
            Want::Right,
            "",
        ),
        // Ascending extents of one byte each. The gate takes this many...
        Case::new(many_extents("extents-a-hundred-thousand", 100_000), Act::Extents(65536), Want::Right, "")
            .limits(&["cpu=10s", "wall=20s"]),
        // ...and refuses as many as would fill the guest's memory.
        lie(many_extents("extents-two-million", 2_000_000), "fuel").limits(&["cpu=10s", "wall=20s"]),
        Case::new(
            Guest::mapping(
                "forwards-elsewhere",
                "",
                "(call $forward (local.get 0) (local.get 1) (i64.const 512) (i32.const 0) (i32.const 2048))",
            ),
            Act::Extents(65536),
            Want::Error(error::EIO),
            "next.extents-forward to 512, where",
        ),
        Case::fault(
            Guest::reads(
                "forwards-in-a-read",
                r#"(import "rbdkit:filter/next@0.1.0" "extents-forward" (func $forward (param i64 i64 i64 i32 i32)))"#,
                "(call $forward (i64.const 0) (i64.const 1) (i64.const 0) (i32.const 0) (i32.const 2100)) \
                 (if (i32.eq (i32.load8_u (i32.const 2101)) (i32.const 12)) (then (unreachable)))",
            ),
            "unreachable",
        ),
        // A call that belongs to another phase.
        Case::harmless(Guest::reads(
            "opens-in-a-read",
            r#"(import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))"#,
            "(call $open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2100)) \
             (if (i32.ne (i32.load8_u (i32.const 2101)) (i32.const 12)) (then (unreachable)))",
        )),
        // A file that no parameter names.
        Case::harmless(Guest::reads(
            "files-of-nobody",
            r#"(import "rbdkit:filter/files@0.1.0" "read" (func $file (param i32 i32 i32 i64 i32 i32)))
               (data (i32.const 2200) "/etc/passwd")"#,
            "(call $file (i32.const 2200) (i32.const 11) (i32.const 0) (i64.const 0) (i32.const 100) (i32.const 2100)) \
             (if (i32.ne (i32.load8_u (i32.const 2100)) (i32.const 1)) (then (unreachable)))",
        )),
        Case::fault(
            Guest::reads(
                "no-such-map",
                r#"(import "rbdkit:filter/maps@0.1.0" "count" (func $count (param i32 i32 i32) (result i64)))"#,
                "(drop (call $count (i32.const 0) (i32.const 8) (i32.const 1)))",
            ),
            "there is no map of that number",
        ),
        Case::fault(
            Guest::reads(
                "no-such-scope",
                r#"(import "rbdkit:filter/slots@0.1.0" "add" (func $add (param i32 i32 i64) (result i64)))"#,
                "(drop (call $add (i32.const 3) (i32.const 0) (i64.const 1)))",
            ),
            "unexpected discriminant",
        ),
    ]
}

/// A guest whose answer is `count` extents of one byte each, in ascending order.
fn many_extents(name: &str, count: u32) -> Guest {
    let code = format!(
        "(drop (memory.grow (i32.const 800))) (global.set $i (i32.const 0)) (global.set $to (i32.const 65536)) \
         (loop $l \
           (i64.store (global.get $to) (i64.add (local.get 0) (i64.extend_i32_u (global.get $i)))) \
           (i64.store (i32.add (global.get $to) (i32.const 8)) (i64.const 1)) \
           (i32.store (i32.add (global.get $to) (i32.const 16)) (i32.and (global.get $i) (i32.const 1))) \
           (global.set $to (i32.add (global.get $to) (i32.const 24))) \
           (global.set $i (i32.add (global.get $i) (i32.const 1))) \
           (br_if $l (i32.lt_u (global.get $i) (i32.const {count})))) \
         (i32.store (i32.const 1280) (i32.const 0)) (i32.store (i32.const 1284) (i32.const 65536)) \
         (i32.store (i32.const 1288) (i32.const {count})) (return (i32.const 1280))"
    );
    let globals = "(global $i (mut i32) (i32.const 0)) (global $to (mut i32) (i32.const 65536))";
    Guest::mapping(name, globals, &code)
}
