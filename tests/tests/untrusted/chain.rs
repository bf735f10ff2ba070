//! What a component may do wrong while it serves: all of them in one chain of one server, one after the other, each with its exact outcome; and
//! at the end the server is what it was at the beginning.

use std::time::{Duration, Instant};

use rbdkit_tests::raw::{cmd, error};
use rbdkit_tests::{Client, Launch, Server, TempDir};

use crate::guest::{self, Guest};

/// Each component's trigger is at a multiple of this, in bytes.
const STEP: u64 = 64 << 10;

/// What is asked for at the trigger.
#[derive(Clone, Copy, Debug)]
enum Act {
    Read(u32),
    Write(u32),
    Extents(u32),
}

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// What is on the disk, or its layout.
    Right,
    /// Bytes that are zero: what the component did not fill.
    Zeroes,
    /// This error.
    Error(u32),
}

struct Case {
    guest: Guest,
    act: Act,
    want: Want,
    /// What the log says of it, behind the filter's name.
    log: &'static str,
    limits: &'static [&'static str],
}

impl Case {
    fn new(guest: Guest, act: Act, want: Want, log: &'static str) -> Case {
        Case { guest, act, want, log, limits: &[] }
    }

    /// A read that fails with EIO.
    fn fault(guest: Guest, log: &'static str) -> Case {
        Case::new(guest, Act::Read(4096), Want::Error(error::EIO), log)
    }

    /// A read that works in spite of it.
    fn harmless(guest: Guest) -> Case {
        Case::new(guest, Act::Read(4096), Want::Right, "")
    }

    fn limits(self, limits: &'static [&'static str]) -> Case {
        Case { limits, ..self }
    }
}

const SPIN: &str = "(loop $l (br $l))";
const COMPUTED: &str = "it computed for longer than 100ms";

const READ: &str = r#"(import "rbdkit:filter/buffer@0.1.0" "read" (func $read (param i32 i32 i32 i32)))"#;
const LOG: &str = r#"(import "rbdkit:filter/log@0.1.0" "error" (func $log (param i32 i32)))"#;
const LOCK: &str = r#"(import "rbdkit:filter/locks@0.1.0" "lock" (func $lock (param i32 i64 i64 i32 i32)))"#;
const TAKE: &str = "(call $lock (i32.const 2) (i64.const 0) (i64.const 4096) (i32.const 1) (i32.const 2100))";

/// Calls `buffer.read`, whose answer the host puts where the guest's allocator says.
const READ_OUT: &str = "(global.set $bad (i32.const 1)) \
                        (call $read (i32.const 0) (i32.const 0) (i32.const 512) (i32.const 2100))";

fn spinning() -> Vec<Case> {
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
        // Host calls that answer at once are on the guest's account...
        Case::fault(
            Guest::reads(
                "cheap-host-calls",
                r#"(import "rbdkit:filter/server@0.1.0" "connections" (func $count (result i32)))"#,
                "(loop $l (drop (call $count)) (br $l))",
            ),
            COMPUTED,
        ),
        // ...and so are those into the layers below, if nobody waits there.
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

/// An answer at 1280: one extent as long as what is asked for.
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
const HANDLES: &str = r#"
    (import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
    (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
    (func (export "things#[constructor]thing") (result i32) (call $new (i32.const 7)))"#;

fn memory() -> Vec<Case> {
    vec![
        Case::harmless(Guest::reads(
            "memory-to-the-end",
            "",
            "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) \
             (if (i32.gt_u (memory.size) (i32.const 1024)) (then (unreachable))) \
             (if (i32.lt_u (memory.size) (i32.const 1020)) (then (unreachable))) \
             (memory.fill (i32.const 65536) (i32.const 7) (i32.sub (i32.mul (memory.size) (i32.const 65536)) \
                 (i32.const 65536)))",
        ))
        .limits(&["cpu=10s", "wall=20s"]),
        Case::harmless(Guest::reads(
            "table-to-the-end",
            "(table $t 1 funcref)",
            "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))) \
             (if (i32.gt_u (table.size $t) (i32.const 4194304)) (then (unreachable))) \
             (if (i32.lt_u (table.size $t) (i32.const 4180000)) (then (unreachable)))",
        ))
        .limits(&["cpu=10s", "wall=20s"]),
        Case::harmless(Guest::reads(
            "table-at-once",
            "(table $t 1 funcref)",
            "(if (i32.ne (table.grow $t (ref.null func) (i32.const -2)) (i32.const -1)) (then (unreachable)))",
        )),
        Case::fault(
            Guest::reads(
                "table-fill",
                "(table $t 1 funcref)",
                "(table.fill $t (i32.const 0) (ref.null func) (i32.const -1))",
            ),
            "wasm trap: undefined element: out of bounds table access",
        ),
        Case::harmless(Guest::reads(
            "memory-at-once",
            "",
            "(if (i32.ne (memory.grow (i32.const 65535)) (i32.const -1)) (then (unreachable)))",
        )),
        Case::fault(
            Guest::reads("bulk-copy", "", "(memory.copy (i32.const 0) (i32.const 1) (i32.const -1))"),
            "wasm trap: out of bounds memory access",
        ),
        Case::fault(
            Guest::reads("bulk-fill", "", "(memory.fill (i32.const 0) (i32.const 1) (i32.const -1))"),
            "wasm trap: out of bounds memory access",
        ),
        Case::fault(
            Guest::reads(
                "bulk-for-ever",
                "",
                "(drop (memory.grow (i32.const 900))) \
                 (loop $l (memory.copy (i32.const 0) (i32.const 1) (i32.const 58000000)) (br $l))",
            ),
            COMPUTED,
        ),
        Case::fault(
            Guest::reads(
                "deep-recursion",
                "(func $deep (param i64) (result i64) (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) \
                 (i64.const 1)))",
                "(drop (call $deep (i64.const 0)))",
            ),
            "call stack exhausted; in deep",
        ),
        // Each step enters the host, which works on the same stack.
        Case::fault(
            Guest::reads(
                "deep-recursion-in-host-calls",
                "(func $deep (param i64) (result i64) \
                 (call $next_pread (local.get 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2100)) \
                 (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))",
                "(drop (call $deep (i64.const 4096)))",
            ),
            "call stack exhausted; in ",
        )
        .limits(&["cpu=10s", "wall=20s"]),
        // The guest calls the host, and what the host calls goes down.
        Case::fault(
            Guest::reads(
                "deep-recursion-below-a-host-call",
                &format!(
                    "{READ}\n(global $bad (mut i32) (i32.const 0)) \
                     (func $deep (param i64) (result i64) \
                     (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))"
                ),
                READ_OUT,
            )
            .realloc("(if (global.get $bad) (then (drop (call $deep (i64.const 0))))) (i32.const 8192)"),
            "call stack exhausted; in deep",
        ),
    ]
}

/// Every function of the host that takes a list or a string: what it is called in the contract, its type, and a call of it in which `$AT` and
/// `$LENGTH` stand for where that is.
const TAKE_LISTS: [(&str, &str, &str); 10] = [
    ("log.error", "(param i32 i32)", "$AT $LENGTH"),
    ("log.warn", "(param i32 i32)", "$AT $LENGTH"),
    ("log.debug", "(param i32 i32)", "$AT $LENGTH"),
    ("next-open.open", "(param i32 i32 i32 i32)", "(i32.const 0) $AT $LENGTH (i32.const 2100)"),
    ("next-open.reopen", "(param i64 i32 i32 i32 i32)", "(i64.const 0) (i32.const 0) $AT $LENGTH (i32.const 2100)"),
    ("buffer.write", "(param i32 i32 i32 i32)", "(i32.const 0) (i32.const 0) $AT $LENGTH"),
    ("files.size", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    (
        "files.read",
        "(param i32 i32 i32 i64 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 2104)",
    ),
    (
        "files.append",
        "(param i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 1) (i32.const 0) $AT $LENGTH (i32.const 2100)",
    ),
    ("files.holds", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
];

/// For each of [`TAKE_LISTS`] one list that is not in the guest's memory, and one that is all of it (`--filter-limit transfer=`, which wasmtime
/// calls fuel).
fn huge_lists() -> Vec<Case> {
    let case = |nth: usize, long: bool| {
        let (name, kind, arguments) = TAKE_LISTS[nth];
        let (interface, function) = name.split_once('.').expect("an interface's function");
        let import = format!(r#"(import "rbdkit:filter/{interface}@0.1.0" "{function}" (func $f {kind}))"#);
        let length = if long { "(i32.const 60000000)" } else { "(i32.const -1)" };
        let call = format!("(call $f {})", arguments.replace("$AT", "(i32.const 0)").replace("$LENGTH", length));
        let name = format!("{}-{interface}-{function}", if long { "long" } else { "huge" });
        match long {
            false => Case::fault(Guest::reads(&name, &import, &call), "out of bounds"),
            true => Case::fault(
                Guest::reads(&name, &import, &format!("(drop (memory.grow (i32.const 960))) {call}")),
                "fuel",
            ),
        }
    };
    (0..TAKE_LISTS.len()).flat_map(|nth| [case(nth, false), case(nth, true)]).collect()
}

/// The allocator that the host calls for what it hands over.
fn allocators() -> Vec<Case> {
    let allocator = |name: &str, realloc: &'static str| {
        Guest::reads(name, &format!("{READ}\n(global $bad (mut i32) (i32.const 0))"), READ_OUT).realloc(realloc)
    };
    vec![
        Case::fault(
            Guest::reads(
                "log-no-text",
                LOG,
                "(i32.store (i32.const 2100) (i32.const -1)) (call $log (i32.const 2100) (i32.const 4))",
            ),
            "utf-8",
        ),
        Case::fault(
            allocator("allocator-out-of-bounds", "(select (i32.const -16) (i32.const 8192) (global.get $bad))"),
            "beyond end of memory",
        ),
        Case::fault(
            allocator("allocator-at-the-end", "(select (i32.const 65500) (i32.const 8192) (global.get $bad))"),
            "beyond end of memory",
        ),
        // Over its own data: its own affair.
        Case::harmless(allocator("allocator-overlaps", "(select (i32.const 2050) (i32.const 8192) (global.get $bad))")),
        Case::fault(
            allocator(
                "allocator-calls-back",
                "(if (global.get $bad) (then (call $read (i32.const 0) (i32.const 0) (i32.const 512) (i32.const 2100)))) \
                 (i32.const 8192)",
            ),
            "cannot leave component instance",
        ),
        Case::fault(
            allocator("allocator-traps", "(if (global.get $bad) (then (unreachable))) (i32.const 8192)"),
            "unreachable",
        ),
        Case::fault(
            Guest::reads(
                "allocator-misaligned",
                r#"(import "rbdkit:filter/next@0.1.0" "extents" (func $extents (param i64 i64 i32 i32)))
                   (global $bad (mut i32) (i32.const 0))"#,
                "(global.set $bad (i32.const 1)) \
                 (call $extents (local.get 0) (i64.const 4096) (i32.const 0) (i32.const 2100))",
            )
            .realloc("(select (i32.const 8193) (i32.const 8192) (global.get $bad))"),
            "not aligned",
        ),
    ]
}

fn handles() -> Vec<Case> {
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
        // 1024 buffers, then enomem.
        Case::harmless(Guest::reads(
            "a-million-buffers",
            alloc,
            "(loop $l (call $alloc (i32.const 1) (i32.const 2100)) (local.set $n (i32.add (local.get $n) (i32.const 1))) \
             (br_if $l (i32.eqz (i32.load8_u (i32.const 2100))))) \
             (if (i32.ne (local.get $n) (i32.const 1025)) (then (unreachable)))",
        )),
        // Beyond `--filter-limit buffers=`, and longer than any request.
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

fn floods() -> Vec<Case> {
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
            "(loop $l (drop (call $prefetch (i64.mul (i64.extend_i32_u (local.get $n)) (i64.const 131072)) (i64.const 65536))) \
             (local.set $n (i32.add (local.get $n) (i32.const 1))) \
             (br_if $l (i32.lt_u (local.get $n) (i32.const 20000)))) \
             (drop (call $prefetch (i64.const -1) (i64.const -1))) \
             (drop (call $prefetch (i64.const 0) (i64.const -1))) \
             (drop (call $prefetch (i64.const 0) (i64.const 0))) \
             (if (call $prefetch (i64.const 0x7fffffffffffffff) (i64.const 1)) (then (unreachable)))",
        )),
        // Quota used up: the component answers what the host told it.
        Case::new(
            Guest::writes(
                "scratch-flood",
                r#"(import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $scratch (param i32 i64 i32 i32 i32 i32)))
                   (global $at (mut i64) (i64.const 0))"#,
                "(loop $l (call $scratch (i32.const 0) (global.get $at) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2100)) \
                 (global.set $at (i64.add (global.get $at) (i64.const 4096))) \
                 (br_if $l (i32.eqz (i32.load8_u (i32.const 2100))))) (return (i32.const 2100))",
            ),
            Act::Write(4096),
            Want::Error(error::ENOSPC),
            "",
        )
        .limits(&["scratch=1M"]),
        // Far beyond any file.
        Case::new(
            Guest::writes(
                "scratch-beyond",
                r#"(import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $scratch (param i32 i64 i32 i32 i32 i32)))"#,
                "(call $scratch (i32.const 0) (i64.const -4096) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2100)) \
                 (return (i32.const 2100))",
            ),
            Act::Write(4096),
            Want::Error(error::EINVAL),
            "",
        ),
        // Every second block, so that no two neighbours are alike.
        Case::fault(
            Guest::reads(
                "map-flood",
                r#"(import "rbdkit:filter/maps@0.1.0" "resize" (func $resize (param i32 i32 i32 i64 i32)))
                   (import "rbdkit:filter/maps@0.1.0" "set" (func $set (param i32 i32 i64 i64 i32 i32 i32) (result i64)))
                   (global $at (mut i64) (i64.const 0))"#,
                "(call $resize (i32.const 0) (i32.const 0) (i32.const 512) (i64.const 0x3fffffffffffffff) (i32.const 2100)) \
                 (loop $l (drop (call $set (i32.const 0) (i32.const 0) (global.get $at) (i64.const 1) (i32.const 15) \
                     (i32.const 1) (i32.const 0))) \
                 (global.set $at (i64.add (global.get $at) (i64.const 100003))) (br $l))",
            ),
            "memory for maps is used up",
        )
        .limits(&["maps=1M", "cpu=10s"]),
    ]
}

fn locks() -> Vec<Case> {
    let sleep = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
    let second = "(if (i32.ne (i32.load8_u (i32.const 2100)) (i32.const 1)) (then (unreachable))) \
                  (if (i32.ne (i32.load8_u (i32.const 2101)) (i32.const 11)) (then (unreachable)))";
    vec![
        Case::fault(Guest::reads("locked-to-the-deadline", LOCK, &format!("{TAKE} {SPIN}")), COMPUTED),
        Case::fault(Guest::reads("trapped-while-locked", LOCK, &format!("{TAKE} (unreachable)")), "unreachable"),
        Case::harmless(Guest::reads("locked-twice", LOCK, &format!("{TAKE} {TAKE} {second}"))),
        // Waiting is on no account of time; but nobody honest waits so often.
        Case::fault(
            Guest::reads("waits-for-ever", sleep, "(loop $l (call $sleep (i64.const 1000) (i32.const 2100)) (br $l))"),
            "it waited more than 20 times",
        )
        .limits(&["waits=20"]),
        // Returning without an unlock is a release too.
        Case::harmless(Guest::reads("never-unlocked", LOCK, TAKE)),
    ]
}

fn lies() -> Vec<Case> {
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
        // Nothing was filled: no stale byte is shown.
        Case::new(Guest::reads("reads-nothing", "", done), Act::Read(4096), Want::Zeroes, ""),
        Case::new(
            Guest::reads(
                "reads-half",
                "",
                &format!(
                    "(call $next_pread (local.get 0) (i32.const 1) (i32.const 0) (i32.const 4095) (i32.const 2100)) {done}"
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
        // Past the end below: an ordinary error, and the component's answer.
        Case::new(
            Guest::reads(
                "reads-past-the-end",
                "",
                "(call $next_pread (i64.const -4096) (i32.const 4096) (i32.const 0) (i32.const 0) (i32.const 2100)) (return (i32.const 2100))",
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
        // It reaches past the end of the export: cut to it.
        Case::new(
            extents("extents-past-the-end", start, "(i64.const 0x7fffffff0000)", "(i32.const 1)"),
            Act::Extents(65536),
            Want::Right,
            "",
        ),
        // Ascending, of a byte each. What fits through the gate is taken...
        Case::new(many_extents("extents-a-hundred-thousand", 100_000), Act::Extents(65536), Want::Right, "")
            .limits(&["cpu=10s", "wall=20s"]),
        // ...and what its memory would hold is not.
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
        // Phases.
        Case::harmless(Guest::reads(
            "opens-in-a-read",
            r#"(import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))"#,
            "(call $open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2100)) \
             (if (i32.ne (i32.load8_u (i32.const 2101)) (i32.const 12)) (then (unreachable)))",
        )),
        // A file that nobody named.
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

/// One whose answer is `count` extents of one byte each, in ascending order.
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

fn cases() -> Vec<Case> {
    [spinning(), memory(), huge_lists(), allocators(), handles(), floods(), locks(), lies()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_function_of_the_host_that_takes_a_list_is_given_a_huge_one() {
    let mut known: Vec<&str> = TAKE_LISTS.iter().map(|(name, ..)| *name).collect();
    known.sort_unstable();
    assert_eq!(known, guest::functions_that_take_lists());
}

fn content(block: u64) -> Vec<u8> {
    (0..4096u64).map(|n| (n.wrapping_mul(31) ^ block.wrapping_mul(17) ^ 0x55) as u8 | 1).collect()
}

/// A server with all of them in a chain, the first nearest the client.
fn serve(cases: &[Case], dir: &TempDir) -> Server {
    let limits = ["--filter-limit", "cpu=100ms", "--filter-limit", "wall=2s"];
    // As an operator runs it: to unwind at each error, as this asks for, touches 2 MiB of the program, and the stacks of all guests.
    let mut launch = Launch::new(limits).env("TMPDIR", dir.path()).env("RUST_BACKTRACE", "0");
    for (nth, case) in cases.iter().enumerate() {
        let component = case.guest.component(nth as u64 * STEP);
        launch = launch.arg("--wasm-filter").arg(dir.file(&format!("{}.wasm", case.guest.name), &component));
        for limit in case.limits {
            launch = launch.arg("--filter-limit").arg(format!("{}:{limit}", case.guest.name));
        }
    }
    launch.args(["memory", "64M"]).start()
}

fn act(client: &mut Client, case: &Case, at: u64) -> Result<Vec<u8>, u32> {
    match case.act {
        Act::Read(length) => client.read(at, length),
        Act::Write(length) => client.write(at, &content(at)[..length as usize]).map(|()| Vec::new()),
        Act::Extents(length) => client.call(cmd::BLOCK_STATUS, 0, at, length, &[]).result,
    }
}

/// What was wrong, if anything was.
fn judge(case: &Case, at: u64, result: &Result<Vec<u8>, u32>) -> Option<String> {
    let right = match (case.act, case.want, result) {
        (_, Want::Error(errno), Err(got)) => *got == errno,
        (Act::Read(length), Want::Right, Ok(bytes)) => bytes == &content(at)[..length as usize],
        (Act::Read(_), Want::Zeroes, Ok(bytes)) => bytes.iter().all(|byte| *byte == 0),
        (Act::Write(_) | Act::Extents(_), Want::Right, Ok(_)) => true,
        _ => false,
    };
    let got = result.as_ref().map(|bytes| bytes.iter().take(8).copied().collect::<Vec<u8>>());
    (!right).then(|| format!("{}: wanted {:?}, got {got:?}", case.guest.name, case.want))
}

/// What is wrong with the log, if anything is.
fn heard(server: &Server, case: &Case) -> Option<String> {
    let name = &case.guest.name;
    let of_it = format!("{name}: ");
    let said = |server: &Server| {
        let log = server.stderr();
        let lines: Vec<String> = log.lines().filter(|line| line.contains(&of_it)).map(str::to_owned).collect();
        lines
    };
    if case.log.is_empty() {
        return said(server).first().map(|line| format!("{name}: the log has: {line}"));
    }
    // The answer may be quicker than the line.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if said(server).iter().any(|line| line.contains(case.log)) {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Some(format!("{name}: no '{}' in the log, but: {:?}", case.log, said(server).first()))
}

#[test]
fn every_hostile_component_costs_its_own_requests_and_nothing_is_left_of_it() {
    let cases = cases();
    let dir = TempDir::new();
    let server = serve(&cases, &dir);
    let mut bystander = server.client();
    for nth in 0..cases.len() as u64 {
        // Beside the trigger, where everybody is well.
        bystander.write(nth * STEP + 4096, &content(nth)).expect("a write");
    }
    for (nth, case) in cases.iter().enumerate().filter(|(_, case)| matches!(case.act, Act::Read(_))) {
        let at = nth as u64 * STEP;
        bystander.write(at, &content(at)).unwrap_or_else(|error| panic!("{}: {error}", case.guest.name));
    }
    for nth in 0..cases.len() as u64 {
        assert_eq!(bystander.read(nth * STEP + 4096, 4096), Ok(content(nth)));
    }
    // The disk is in memory: what the burst writes is there before.
    for nth in 0..u64::from(BURST) / STEP {
        bystander.write(BURST_AT + nth * STEP, &[7; STEP as usize]).expect("a write");
    }
    println!("one request at a time: {}", kinds(&server));
    serve_honestly(&mut bystander);
    // It has served what any server has to before somebody hostile comes. What comes now has to be gone in the end.
    let before = Usage::of(&server, &dir);
    println!("before: {}", kinds(&server));
    let mut wrong = Vec::new();
    for round in 0..4 {
        for (nth, case) in cases.iter().enumerate() {
            let at = nth as u64 * STEP;
            let mut client = server.client();
            let began = Instant::now();
            let result = act(&mut client, case, at);
            let took = began.elapsed();
            println!("{}: {took:?}", case.guest.name);
            wrong.extend(judge(case, at, &result));
            if took.as_secs() >= 5 {
                wrong.push(format!("{}: it took {took:?}", case.guest.name));
            }
            wrong.extend(heard(&server, case));
            // The same connection and another one are served.
            for client in [&mut client, &mut bystander] {
                if client.read(at + 4096, 4096) != Ok(content(nth as u64)) {
                    wrong.push(format!("{}: afterwards others are not served", case.guest.name));
                }
            }
            client.disconnect();
        }
        assert!(wrong.is_empty(), "round {round}:\n{}", wrong.join("\n"));
        println!("round {round}: {}", kinds(&server));
    }
    before.is_back(&server, &dir);
    assert_eq!(bystander.read(4096, 4096), Ok(content(0)), "it still serves");
    drop(bystander);
    let log = server.stop();
    assert!(log.status.success(), "{}\n{}", log.status, log.stderr);
    assert!(!log.stderr.bytes().any(|byte| byte.is_ascii_control() && byte != b'\n'), "an escape in the log");
    let flood = log.stderr.lines().filter(|line| line.contains("I am the host")).count();
    assert!(flood < 400, "{flood} lines of the flood");
    assert!(log.stderr.contains("lines of this filter were dropped") || flood < 400);
}

/// Where [`serve_honestly`] reads and writes, in bytes.
const BURST_AT: u64 = 32 << 20;
const BURST: u32 = 4 << 20;

/// A burst of requests of all sizes, several at once, as any client may send one.
fn serve_honestly(client: &mut Client) {
    for (length, count) in
        [(4 << 10, 128), (16 << 10, 128), (64 << 10, 64), (256 << 10, 16), (1 << 20, 4), (4 << 20, 1)]
    {
        let bytes = vec![7; length as usize];
        for nth in 0..count {
            client.submit(cmd::WRITE, 0, BURST_AT + u64::from(nth * length), length, &bytes).expect("a request");
        }
        for _ in 0..count {
            assert!(client.receive().expect("a reply").result.is_ok());
        }
        assert_eq!(client.read(BURST_AT, length), Ok(bytes));
    }
    assert!(client.call(cmd::BLOCK_STATUS, 0, BURST_AT, 32 << 20, &[]).result.is_ok());
}

fn kinds(server: &Server) -> String {
    let kib = |key| server.proc_status(key);
    format!("{} KiB resident, of them {} of files", kib("VmRSS:"), kib("RssFile:"))
}

/// What a server holds.
struct Usage {
    resident: u64,
    threads: u64,
    files: usize,
    temporary: usize,
}

impl Usage {
    fn of(server: &Server, dir: &TempDir) -> Usage {
        Usage {
            resident: server.resident(),
            threads: server.proc_status("Threads:"),
            files: server.open_files(),
            temporary: std::fs::read_dir(dir.path()).expect("the directory").count(),
        }
    }

    /// Waits until it is all given back. Threads that wait for work end after a while of their own, and memory is given back when a while has gone by without a
    /// request.
    fn is_back(&self, server: &Server, dir: &TempDir) {
        server.wait_until("its files are closed", |server| Usage::of(server, dir).files <= self.files);
        server.wait_until("its threads are gone", |server| Usage::of(server, dir).threads <= self.threads);
        let most = self.resident + self.resident / 10;
        server.wait_until("its memory is given back", |server| server.resident() <= most);
        let now = Usage::of(server, dir);
        println!("resident: {} KiB before, {} KiB after", self.resident >> 10, now.resident >> 10);
        assert_eq!(now.temporary, self.temporary, "temporary files");
    }
}
