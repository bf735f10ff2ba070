//! Wrong components that are written as modules in text: what a compiler would not make, and what
//! `check` has to make small.

use rbdkit_tests::server::filter;

use crate::case::FoundBy::{self, Check, Inspect, Serve};
use crate::guest::Guest;

/// A wrong component.
pub struct Component {
    pub name: &'static str,
    pub bytes: fn() -> Vec<u8>,
    pub found_by: FoundBy,
    /// The whole line. `*` stands for any text.
    pub says: &'static str,
    /// The most steps of the smallest sequence that `check` finds, which fails again each time. 0
    /// if there is none.
    pub most_steps: usize,
}

/// Where a guest would do its wrong thing if it did it at one offset only.
const NOWHERE: u64 = 1 << 40;

const NEXT_READ: &str = r#"(import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))"#;

/// A guest that exports `reads` with this body, which leaves a pointer to the result.
fn reads(name: &str, imports: &str, body: &str) -> Guest {
    let export = r#"(func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)"#;
    Guest::new(name, &["reads"], &format!("{NEXT_READ}\n{imports}\n{export}\n{body})"))
}

fn bytes(guest: &Guest) -> Vec<u8> {
    guest.component(NOWHERE)
}

/// A guest whose reads and writes fail with an error of this number.
fn failing(errno: u8) -> Guest {
    let body = format!(
        r#"
    (data (i32.const 3000) "\01\{errno:02x}")
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32) (i32.const 3000))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32) (i32.const 3000))"#
    );
    Guest::new("fails", &["reads", "writes"], &body)
}

/// A guest that exports `reads` under another name.
fn misspelt() -> Vec<u8> {
    let body = r#"
    (func (export "rbdkit:filter/raeds@0.1.0#pread") (param i64 i32 i32) (result i32) (i32.const 1200))"#;
    let contract = "interface raeds {\n  use types.{errno, command-flags};\n  pread: func(offset: u64, length: u32, \
                    %flags: command-flags) -> result<_, errno>;\n}";
    bytes(&Guest { contract, ..Guest::new("misspelt", &["raeds"], body) })
}

/// A guest that answers with `count` extents of one type, the first of which has this length.
fn extents(length: &str, kind: u8, count: u32) -> Vec<u8> {
    let body = format!(
        r#"(func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (i64.store (i32.const 3000) (local.get 0)) (i64.store (i32.const 3008) {length})
        (i32.store8 (i32.const 3016) (i32.const {kind}))
        (i32.store (i32.const 1280) (i32.const 0)) (i32.store (i32.const 1284) (i32.const 3000))
        (i32.store (i32.const 1288) (i32.const {count})) (i32.const 1280))"#
    );
    bytes(&Guest::new("maps", &["mapping"], &body))
}

/// A guest whose thread model is parallel or serialize-requests, by chance.
fn thread_model_by_chance() -> Vec<u8> {
    let imports = r#"(import "rbdkit:filter/clock@0.1.0" "random" (func $random (result i64)))"#;
    let pass = r#"
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048)"#;
    let guest = reads("chance", imports, pass);
    let model = r#"
    (func (export "rbdkit:filter/threading@0.1.0#thread-model") (result i32)
        (i32.add (i32.const 2) (i32.and (i32.wrap_i64 (call $random)) (i32.const 1))))"#;
    bytes(&Guest { exports: vec!["reads", "threading"], body: guest.body + model, ..guest })
}

const NEVER: &str = "rbdkit-filter: error: the filter never answers: pread of * bytes at * has not ended in *";
const FAILED: &str = "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)";
const UNKNOWN: &str = "rbdkit-filter: error: it exports rbdkit:filter/raeds, which this host does not know: did you \
                       mean reads?";

pub const COMPONENTS: &[Component] = &[
    Component {
        name: "writes are dropped",
        bytes: || {
            bytes(&Guest::new(
                "drops",
                &["writes"],
                r#"(func (export "rbdkit:filter/writes@0.1.0#pwrite")
                (param i64 i32 i32) (result i32) (i32.const 1200))"#,
            ))
        },
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: pread of 1 bytes at * returns 0x* at offset *, but what was written there is \
               0x*; the byte is the one from before that write",
        most_steps: 2,
    },
    Component {
        name: "writes are dropped, and nothing was promised",
        bytes: || {
            bytes(&Guest::new(
                "drops",
                &["writes"],
                r#"(func (export "rbdkit:filter/writes@0.1.0#pwrite")
                (param i64 i32 i32) (result i32) (i32.const 1200))"#,
            ))
        },
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of 1 bytes at * returns 0x* at offset *, but what was written there is 0x**",
        most_steps: 3,
    },
    Component {
        name: "writes never reach the disk",
        bytes: || std::fs::read(filter("cow")).expect("the filter cow"),
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: *0x*",
        most_steps: 3,
    },
    Component {
        name: "reads come from an old copy",
        bytes: || {
            let imports = r#"
    (import "rbdkit:filter/buffer@0.1.0" "alloc" (func $alloc (param i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pwrite" (func $keep (param i32 i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/scratch@0.1.0" "pread" (func $kept (param i32 i64 i32 i32 i32 i32)))
    (global $copied (mut i32) (i32.const 0))"#;
            let body = r#"
        (if (i64.gt_u (i64.add (local.get 0) (i64.extend_i32_u (local.get 1))) (i64.const 65536)) (then
            (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
            (return (i32.const 2048))))
        (if (i32.eqz (global.get $copied)) (then
            (call $alloc (i32.const 65536) (i32.const 2048))
            (call $next_pread
                (i64.const 0) (i32.const 65536) (i32.load (i32.const 2052)) (i32.const 0) (i32.const 2064))
            (call $keep (i32.const 2) (i64.const 0) (i32.const 65536)
                (i32.load (i32.const 2052)) (i32.const 0) (i32.const 2080))
            (global.set $copied (i32.const 1))))
        (call $kept (i32.const 2) (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048)"#;
            bytes(&Guest { recovery: 2, ..reads("stale", imports, body) }.model(1))
        },
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: pread of 1 bytes at * returns 0x* at offset *, but * 0x*",
        // Read, so that the copy is made; write; read.
        most_steps: 3,
    },
    Component {
        name: "reads that are not aligned are shifted",
        bytes: || {
            bytes(&reads(
                "shifts",
                "",
                r#"
        (call $next_pread (i64.and (local.get 0) (i64.const -512)) (local.get 1)
            (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048)"#,
            ))
        },
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: pread of 1 bytes at * returns 0x* at offset *, but the disk below had at first \
         0x**",
        most_steps: 1,
    },
    Component {
        name: "it writes, although it is said to be read-only",
        bytes: || {
            let zero = r#"(import "rbdkit:filter/next@0.1.0" "zero" (func $zero (param i64 i64 i32 i32)))"#;
            bytes(&reads(
                "writes",
                zero,
                r#"
        (call $zero (i64.const 77) (i64.const 3) (i32.const 0) (i32.const 2048))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048)"#,
            ))
        },
        found_by: Check(&["--transforms", "read-only"]),
        says: "rbdkit-filter: error: the filter is said to be read-only, but it sent a * bytes at * to the disk below",
        most_steps: 1,
    },
    Component {
        name: "reads wait forever",
        bytes: || {
            let sleep = r#"(import "rbdkit:filter/server@0.1.0" "sleep" (func $sleep (param i64 i32)))"#;
            bytes(&reads(
                "sleeps",
                sleep,
                "(call $sleep (i64.const 9000000000000000000) (i32.const 2048))
                (i32.const 2048)",
            ))
        },
        found_by: Check(&["--patience", "5", "--time", "2s"]),
        says: NEVER,
        most_steps: 1,
    },
    Component {
        name: "every request fails, promised identity",
        bytes: || bytes(&failing(2)),
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: every read and write fails (*: p* of * bytes at * fails with EIO, although the \
               disk below has not failed",
        most_steps: 5,
    },
    Component {
        name: "every request fails, promised nothing",
        bytes: || bytes(&failing(2)),
        found_by: Check(&["--transforms", "own"]),
        says: "rbdkit-filter: error: every read and write fails (*: EIO",
        most_steps: 5,
    },
    Component {
        name: "every request fails with ENOMEM",
        bytes: || bytes(&failing(3)),
        found_by: Check(&[]),
        says: "rbdkit-filter: error: every read and write fails with ENOMEM: the filter needs more memory than its \
               limits allow (*",
        most_steps: 5,
    },
    Component {
        name: "reads beyond the first block trap",
        bytes: || {
            bytes(&reads(
                "traps",
                "",
                r#"
        (if (i64.gt_u (local.get 0) (i64.const 4096)) (then (unreachable)))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048)"#,
            ))
        },
        found_by: Check(&["--transforms", "own"]),
        says: "rbdkit-filter: error: the filter failed in pread of 1 bytes at *: it trapped or reached a limit (the \
               log says why)",
        most_steps: 1,
    },
    Component {
        name: "what it writes depends on its memory",
        bytes: || {
            let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "zero" (func $zero (param i64 i64 i32 i32)))
    (global $writes (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (global.set $writes (i32.add (global.get $writes) (i32.const 1)))
        (if (i32.eq (global.get $writes) (i32.const 3)) (then
            (call $zero (i64.const 40000000) (i64.const 512) (i32.const 0) (i32.const 2048))))
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))"#;
            bytes(&Guest::new("counts", &["writes"], body))
        },
        found_by: Check(&["--transforms", "own"]),
        says: "rbdkit-filter: error: the filter keeps state in its memory: *",
        most_steps: 6,
    },
    Component {
        name: "a transparent filter drops the flag FUA",
        bytes: || {
            let body = r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))"#;
            bytes(&Guest::new("forgets", &["writes"], body))
        },
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: pwrite of * bytes at * with FUA succeeds, but the disk below got its data (* \
         bytes \
               at *) without FUA, and no flush after it: it may be lost",
        most_steps: 1,
    },
    Component {
        name: "everything is said to be a hole",
        bytes: || extents("(local.get 1)", 3, 1),
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: extents of * bytes at * says that offset * reads as zero, but * 0x*",
        most_steps: 2,
    },
    Component {
        name: "an extent has no length",
        bytes: || extents("(i64.const 0)", 0, 1),
        found_by: Check(&["--transforms", "identity"]),
        says: FAILED,
        most_steps: 2,
    },
    Component {
        name: "a list is longer than the guest's memory",
        bytes: || extents("(i64.const 1)", 0, 100_000_000),
        found_by: Check(&["--transforms", "identity"]),
        says: FAILED,
        most_steps: 1,
    },
    Component {
        name: "its thread model is another in each instance",
        bytes: thread_model_by_chance,
        found_by: Check(&[]),
        says: "*its thread model is * in a new instance, and was * in the first one: it may depend on the parameters \
               only*",
        most_steps: 0,
    },
    Component {
        name: "a required parameter is missing",
        bytes: || {
            bytes(&Guest {
                params: vec![("key", "int")],
                // The byte `required` of the first parameter.
                describe: "(i32.store8 (i32.const 1344) (i32.const 1)) (i32.const 1024)",
                ..Guest::new("needy", &[], "")
            })
        },
        found_by: Check(&[]),
        says: "rbdkit-filter: error: needy: the parameter key=<INT> is required*",
        most_steps: 0,
    },
    Component { name: "an interface is misspelt", bytes: misspelt, found_by: Check(&[]), says: UNKNOWN, most_steps: 0 },
    Component {
        name: "an interface is misspelt, as an operator sees it",
        bytes: misspelt,
        found_by: Inspect,
        says: "  warning: it exports rbdkit:filter/raeds, which this host does not know: did you mean reads?",
        most_steps: 0,
    },
    Component {
        name: "an interface is misspelt, as the log has it",
        bytes: misspelt,
        found_by: Serve(&[]),
        says: "rbdkit: warning: misspelt: it exports rbdkit:filter/raeds, which this host does not know: did you mean \
               reads?",
        most_steps: 0,
    },
    Component {
        name: "the file is too large",
        bytes: || vec![0; (64 << 20) + 1],
        found_by: Inspect,
        says: "rbdkit-filter: error: cannot read *wrong.wasm: is larger than 64 MiB",
        most_steps: 0,
    },
    Component {
        name: "the file is no component",
        bytes: || b"#!/bin/sh\n".to_vec(),
        found_by: Serve(&[]),
        says: "rbdkit: error: *wrong.wasm: it is not a WebAssembly component",
        most_steps: 0,
    },
    Component {
        name: "a module stands in place of a component",
        bytes: || wat::parse_str("(module)").expect("a module"),
        found_by: Inspect,
        says: "rbdkit-filter: error: *wrong.wasm: it is a core WebAssembly module, not a component (rbdkit-filter \
         build \
               makes one of it)",
        most_steps: 0,
    },
    Component {
        name: "a name has a space",
        bytes: || bytes(&Guest::new("my filter", &[], "")),
        found_by: Inspect,
        says: "rbdkit-filter: error: *wrong.wasm: its name \"my filter\" is not of lower-case letters, digits and '-'",
        most_steps: 0,
    },
    Component {
        name: "configure refuses without a reason",
        bytes: || {
            bytes(&Guest {
                configure: "(i32.store (i32.const 2048) (i32.const 1)) (i32.store (i32.const 2056) (i32.const 0)) \
                            (i32.const 2048)",
                ..Guest::new("refuses", &[], "")
            })
        },
        found_by: Serve(&[]),
        says: "rbdkit: error: refuses: it refuses its parameters, and does not say why",
        most_steps: 0,
    },
];
