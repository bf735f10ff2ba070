//! Wrong filters in Zig, Go and Rust.

use crate::case::Edit::Replace;
use crate::case::FoundBy::{Build, Check};
use crate::case::{Case, Edit};

const WRITES: &str = "    export rbdkit:filter/writes@0.1.0;\n";
const MORE: Edit =
    Replace("wit/world.wit", WRITES, "    export rbdkit:filter/writes@0.1.0;\n    export rbdkit:filter/trims@0.1.0;\n");
const LESS: Edit = Replace("wit/world.wit", WRITES, "");

const NOT_WRITTEN: &str =
    "wit/world.wit exports trims, but the filter does not implement trims.trim: write it, or remove the export";
const NOT_EXPORTED: &str =
    "the filter implements writes, but wit/world.wit does not export it: the server would never call it. *";
const TRAPPED: &str = "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)";
const STATE: &str = "rbdkit-filter: error: the filter keeps state in its memory: *; the host gives the calls of a \
                     parallel filter to any of its instances (keep the state in maps, slots or scratch, or choose a \
                     thread model and a recovery that allow it)";

pub const ZIG: &[Case] = &[
    Case { name: "an export is not written", edits: &[MORE], found_by: Build, says: NOT_WRITTEN },
    Case { name: "an operation is not exported", edits: &[LESS], found_by: Build, says: NOT_EXPORTED },
    Case {
        name: "a name is misspelt",
        edits: &[Replace(
            "filter.zig",
            "rbdkit.xor(rbdkit.payload, 0, length, &.{key}, 0);\n    return true",
            "rbdkit.xro(0);\n    return true",
        )],
        found_by: Build,
        says: "filter.zig:39:11: error: root source file struct 'rbdkit' has no member named 'xro'",
    },
    Case {
        name: "an index is out of bounds",
        edits: &[Replace(
            "filter.zig",
            "    rbdkit.xor(rbdkit.payload, 0, length, &.{key}, 0);\n    return true;",
            "    const table = [_]u8{ 1, 2 };\n    rbdkit.xor(rbdkit.payload, 0, length, &.{table[length % \
             3]}, 0);\n    \
             return true;",
        )],
        found_by: Check(&[]),
        says: TRAPPED,
    },
];

pub const GO: &[Case] = &[
    Case { name: "an export is not written", edits: &[MORE], found_by: Build, says: NOT_WRITTEN },
    Case { name: "an operation is not exported", edits: &[LESS], found_by: Build, says: NOT_EXPORTED },
    Case {
        name: "a variable is not used",
        edits: &[Replace(
            "filter.go",
            "\trbdkit.Payload.Xor(0, length, []byte{key}, 0)\n\treturn nil",
            "\tcount := 1\n\treturn nil",
        )],
        found_by: Build,
        says: "./filter.go:35:2: declared and not used: count",
    },
    Case {
        name: "a map is nil",
        edits: &[
            Replace("filter.go", "var key byte = 255", "var key byte = 255\nvar seen map[uint64]bool"),
            Replace("filter.go", "\treturn nil\n}\n\n// Pwrite", "\tseen[offset] = true\n\treturn nil\n}\n\n// Pwrite"),
        ],
        found_by: Check(&["--ops", "100"]),
        says: TRAPPED,
    },
    Case {
        name: "a parallel filter counts in its memory",
        edits: &[
            Replace("filter.go", "var key byte = 255", "var key byte = 255\nvar writes int"),
            Replace(
                "filter.go",
                "\treturn rbdkit.Next.Pwrite(",
                "\tif writes++; writes == 3 {\n\t\trbdkit.Next.Zero(40000000, 512, 0)\n\t}\n\treturn \
                 rbdkit.Next.Pwrite(",
            ),
        ],
        found_by: Check(&["--transforms", "own", "--ops", "600"]),
        says: STATE,
    },
];

pub const RUST: &[Case] = &[
    Case {
        name: "an operation is not exported",
        edits: &[Replace("src/lib.rs", "export!(Mine: reads, writes)", "export!(Mine: reads)")],
        found_by: Build,
        says: "*`Mine` implements `Writes`, and export! does not name `writes`: pwrite would never be called*",
    },
    Case {
        name: "an export is not written",
        edits: &[Replace("src/lib.rs", "export!(Mine: reads, writes)", "export!(Mine: reads, writes, trims)")],
        found_by: Build,
        says: "error[E0277]: `Mine` is exported with `trims` and does not implement the trait `Trims`",
    },
    Case {
        name: "the name of a parameter is misspelt",
        edits: &[Replace("src/lib.rs", "Mine { key: settings.key }", "Mine { key: settings.kye }")],
        found_by: Build,
        says: "error[E0609]: no field `kye` on type `Settings`",
    },
    Case {
        name: "a parallel filter counts in its memory",
        edits: &[Replace(
            "src/lib.rs",
            "        Payload.xor(..length, &[self.key], 0);\n        next::pwrite(",
            "        static WRITES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);\n        \
             if WRITES.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 3 {\n            \
             next::zero(40_000_000, 512, CommandFlags::empty())?;\n        }\n        \
             Payload.xor(..length, &[self.key], 0);\n        next::pwrite(",
        )],
        found_by: Check(&["--transforms", "own"]),
        says: STATE,
    },
];
