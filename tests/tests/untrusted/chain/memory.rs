//! Guests that take memory, tables and stack, that pass lists which they do not have, and whose
//! allocators misbehave.

use super::case::{COMPUTED, Case, LOG, READ, READ_OUT};
use crate::guest::{self, Guest};

pub fn memory() -> Vec<Case> {
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
            "call stack exhausted (a guest has 512 KiB); in deep",
        ),
        // Each step of the recursion enters the host, which uses the same stack.
        Case::fault(
            Guest::reads(
                "deep-recursion-in-host-calls",
                "(func $deep (param i64) (result i64) \
                 (call $next_pread (local.get 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2100)) \
                 (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))",
                "(drop (call $deep (i64.const 4096)))",
            ),
            "call stack exhausted (a guest has 512 KiB); in ",
        )
        .limits(&["cpu=10s", "wall=20s"]),
        // The guest calls the host, and the allocator that the host then calls recurses.
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
            "call stack exhausted (a guest has 512 KiB); in deep",
        ),
    ]
}

/// Every function of the host that takes a list or a string: its name in the contract, its type,
/// and the arguments of a call. `$AT` and `$LENGTH` stand for the place of the list, and `$PAIRS`
/// for the length of one whose items have 16 bytes.
const TAKE_LISTS: [(&str, &str, &str); 37] = [
    ("log.error", "(param i32 i32)", "$AT $LENGTH"),
    ("log.warn", "(param i32 i32)", "$AT $LENGTH"),
    ("log.info", "(param i32 i32)", "$AT $LENGTH"),
    ("log.debug", "(param i32 i32)", "$AT $LENGTH"),
    ("next-open.open", "(param i32 i32 i32 i32)", "(i32.const 0) $AT $LENGTH (i32.const 2100)"),
    ("next-open.open-shared", "(param i32 i32 i32 i32)", "(i32.const 0) $AT $LENGTH (i32.const 2100)"),
    ("next-open.reopen", "(param i64 i32 i32 i32 i32)", "(i64.const 0) (i32.const 0) $AT $LENGTH (i32.const 2100)"),
    ("buffer.write", "(param i32 i32 i32 i32)", "(i32.const 0) (i32.const 0) $AT $LENGTH"),
    (
        "buffer.xor",
        "(param i32 i32 i32 i32 i32 i64)",
        "(i32.const 0) (i32.const 0) (i32.const 1) $AT $LENGTH (i64.const 0)",
    ),
    ("buffer.translate", "(param i32 i32 i32 i32 i32)", "(i32.const 0) (i32.const 0) (i32.const 1) $AT $LENGTH"),
    (
        "buffer.find",
        "(param i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 0) (i32.const 1) $AT $LENGTH (i32.const 2100)",
    ),
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
    (
        "crypto.derive-pbkdf2",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 0) (i32.const 0) (i32.const 0) \
         (i32.const 0) (i32.const 0) $AT $LENGTH (i32.const 1) (i32.const 2104)",
    ),
    (
        "crypto.derive-argon2",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 0) (i32.const 0) (i32.const 0) \
         (i32.const 0) (i32.const 0) $AT $LENGTH (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 2104)",
    ),
    (
        "crypto.unwrap",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32) (i32.const 1) (i32.const 0) (i32.const 0) \
         (i32.const 1) $AT $LENGTH (i32.const 2104)",
    ),
    (
        "crypto.matches",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) \
         $AT $LENGTH (i32.const 2104)",
    ),
    (
        "crypto.make-key",
        "(param i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 0) (i32.const 0) $AT $LENGTH (i32.const 2104)",
    ),
    ("files.sync", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    ("files.truncate", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    ("storage.size", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    ("storage.resize", "(param i32 i32 i32 i64 i32)", "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 2104)"),
    ("storage.allocated", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    (
        "storage.pread",
        "(param i32 i32 i32 i64 i32 i32 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2104)",
    ),
    (
        "storage.pwrite",
        "(param i32 i32 i32 i64 i32 i32 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2104)",
    ),
    (
        "storage.read",
        "(param i32 i32 i32 i64 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 2104)",
    ),
    (
        "storage.write",
        "(param i32 i32 i32 i64 i32 i32 i32)",
        "(i32.const 0) (i32.const 1) (i32.const 0) (i64.const 0) $AT $LENGTH (i32.const 2104)",
    ),
    (
        "storage.punch",
        "(param i32 i32 i32 i64 i64 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i64.const 1) (i32.const 2104)",
    ),
    ("storage.flush", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    ("disks.size", "(param i32 i32 i32 i32)", "$AT $LENGTH (i32.const 0) (i32.const 2104)"),
    (
        "disks.pread",
        "(param i32 i32 i32 i64 i32 i32 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2104)",
    ),
    (
        "disks.extents",
        "(param i32 i32 i32 i64 i64 i32 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i64.const 1) (i32.const 0) (i32.const 2104)",
    ),
    (
        "disks.cache",
        "(param i32 i32 i32 i64 i64 i32)",
        "$AT $LENGTH (i32.const 0) (i64.const 0) (i64.const 1) (i32.const 2104)",
    ),
    (
        "scripts.run",
        "(param i32 i32 i32 i32 i32 i32)",
        "(i32.const 0) (i32.const 1) (i32.const 0) $AT $PAIRS (i32.const 2104)",
    ),
    ("counters.add-all", "(param i32 i32 i32)", "$AT $PAIRS (i32.const 2104)"),
];

/// For each of [`TAKE_LISTS`] a list outside of the guest's memory, and one as long as its whole
/// memory. The second is more than `--filter-limit transfer=` allows, which wasmtime calls fuel.
pub fn huge_lists() -> Vec<Case> {
    let case = |nth: usize, long: bool| {
        let (name, kind, arguments) = TAKE_LISTS[nth];
        let (interface, function) = name.split_once('.').expect("an interface's function");
        let import = format!(r#"(import "rbdkit:filter/{interface}@0.1.0" "{function}" (func $f {kind}))"#);
        let length = if long { "(i32.const 60000000)" } else { "(i32.const -1)" };
        let pairs = if long { "(i32.const 3750000)" } else { "(i32.const 268435455)" };
        let arguments = arguments.replace("$AT", "(i32.const 0)").replace("$LENGTH", length).replace("$PAIRS", pairs);
        let call = format!("(call $f {arguments})");
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

/// Guests whose allocator misbehaves when the host calls it.
pub fn allocators() -> Vec<Case> {
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
        // The guest overwrites its own data, which harms nobody else.
        Case::harmless(allocator("allocator-overlaps", "(select (i32.const 2050) (i32.const 8192) (global.get $bad))")),
        Case::fault(
            allocator(
                "allocator-calls-back",
                "(if (global.get $bad) (then (call $read (i32.const 0) (i32.const 0) (i32.const 512) \
                 (i32.const 2100)))) \
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

#[test]
fn the_cases_cover_every_function_of_the_host_that_takes_a_list() {
    let mut known: Vec<&str> = TAKE_LISTS.iter().map(|(name, ..)| *name).collect();
    known.sort_unstable();
    assert_eq!(known, guest::functions_that_take_lists());
}
