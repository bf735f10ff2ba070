//! Wrong filters in C and C++.

use crate::case::Edit::{Append, Replace};
use crate::case::FoundBy::{Build, Check, Inspect, Serve};
use crate::case::{Case, Edit};

/// Where the world exports something.
const WRITES: &str = "    export rbdkit:filter/writes@0.1.0;\n";
const NO_WRITES: Edit = Replace("wit/world.wit", WRITES, "");

/// The key does nothing.
const IDENTITY: &[Edit] = &[];

macro_rules! export {
    ($($name:literal),*) => {
        Replace("wit/world.wit", WRITES, concat!("    export rbdkit:filter/writes@0.1.0;\n", $(
            "    export rbdkit:filter/", $name, "@0.1.0;\n"),*))
    };
}

const READ: &str = "    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);\n    return true;";
const READ_BELOW: &str =
    "    if (!rbdkit_filter_next_pread(offset, length, RBDKIT_PAYLOAD, 0, error))\n        return false;\n";
const WRITE: &str = "    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);\n    return \
 rbdkit_filter_next_pwrite(offset, \
                     length, RBDKIT_PAYLOAD, 0, flags, error);\n";

pub const C: &[Case] = &[
    Case {
        name: "an export is not written",
        edits: &[export!("trims")],
        found_by: Build,
        says: "wit/world.wit exports trims, but the filter does not implement trims.trim: write it, or remove the \
               export",
    },
    Case {
        name: "an operation is not exported",
        edits: &[NO_WRITES],
        found_by: Build,
        says: "the filter implements writes, but wit/world.wit does not export it: the server would never call it. \
               The disk would be read-only, or writes would pass by a transparent filter. Add the export, or remove \
               the code",
    },
    Case {
        name: "it does not compile",
        edits: &[Replace("filter.c", "static uint8_t key = 255;", "static uint8_t key = 255")],
        found_by: Build,
        says: "filter.c:8:25: error: expected ';' after top level declarator",
    },
    Case {
        name: "the world names an unknown interface",
        edits: &[export!("raeds")],
        found_by: Build,
        says: "rbdkit-filter: error: cannot read wit/: failed to resolve directory while parsing WIT for path \
         [*/wit]: interface not found in package",
    },
    Case {
        name: "the stack overflows",
        edits: &[Replace(
            "filter.c",
            READ,
            "    volatile uint8_t deep[4 << 20];\n    memset((void *)deep, length, sizeof deep);\n    return \
             deep[length] != \
             0;",
        )],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)",
    },
    Case {
        name: "a loop never ends",
        edits: &[Replace("filter.c", READ_BELOW, "    for (volatile uint32_t n = 0;; n++)\n        ;\n")],
        found_by: Check(&["--time", "1s"]),
        says: "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)",
    },
    Case {
        name: "every request fails",
        edits: &[
            Replace("filter.c", READ, "    *error = RBDKIT_EIO;\n    return false;"),
            Replace(
                "filter.c",
                WRITE,
                "    (void)offset, (void)length, (void)flags;\n    *error = RBDKIT_EIO;\n    return \
                                        false;\n",
            ),
        ],
        found_by: Check(&["--transforms", "own"]),
        says: "rbdkit-filter: error: every read and write fails (*): EIO",
    },
    Case {
        name: "every request needs more memory than there is",
        edits: &[
            Replace(
                "filter.c",
                READ,
                "    void *volatile memory = malloc(100 << 20);\n    if (!memory)\n        *error = \
                 RBDKIT_ENOMEM;\n    return false;",
            ),
            Replace(
                "filter.c",
                WRITE,
                "    (void)offset, (void)length, (void)flags;\n    void *volatile memory = malloc(100 << 20);\n    if \
                 (!memory)\n        *error = \
                 RBDKIT_ENOMEM;\n    return false;\n",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: every read and write fails with ENOMEM: the filter needs more memory than its \
               limits allow (*",
    },
    Case {
        name: "it passes a parameter by another name",
        edits: IDENTITY,
        found_by: Check(&["kye=7"]),
        says: "rbdkit-filter: error: the filter has no parameter 'kye' (it has: key), and the disk below it has size",
    },
    Case {
        name: "a value is out of range",
        edits: IDENTITY,
        found_by: Serve(&["key=256"]),
        says: "rbdkit: error: mine: key=256: is not from 0 to 255",
    },
    Case {
        name: "a required parameter is missing",
        edits: &[Replace(
            "filter.c",
            "rbdkit_add_param(about, \"key\", \"int\", \"255\", \"The number, 0 to 255.\");",
            "rbdkit_add_param(about, \"key\", \"int\", NULL, \"The number\")->required = true;",
        )],
        found_by: Serve(&[]),
        says: "rbdkit: error: mine: the parameter key=<INT> is required: The number",
    },
    Case {
        name: "a parameter is of an unknown kind",
        edits: &[Replace("filter.c", "\"int\"", "\"number\"")],
        found_by: Inspect,
        says: "rbdkit-filter: error: *mine.wasm: its parameter key is of the kind \"number\", which this host does \
         not know (it knows string, bool, int, *)",
    },
    Case {
        name: "a write tears",
        edits: &[Replace("filter.c", "next_pwrite(offset, length,", "next_pwrite(offset, (length + 1) / 2,")],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but * 0x*",
    },
    Case {
        name: "a read that is not aligned is shifted",
        edits: &[Replace("filter.c", "next_pread(offset,", "next_pread(offset & ~511ull,")],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but * 0x*",
    },
    Case {
        name: "a block is read, changed and written back without a lock",
        edits: &[Replace(
            "filter.c",
            WRITE,
            "    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);\n    uint64_t \
                block = offset & ~4095ull;\n    uint32_t buffer, at = (uint32_t)(offset - block);\n    if (at + \
                length > \
                4096)\n        return rbdkit_filter_next_pwrite(offset, length, RBDKIT_PAYLOAD, 0, flags, \
                error);\n    if \
                (!rbdkit_filter_buffer_alloc(4096, &buffer, error) || \
                !rbdkit_filter_next_pread(block, 4096, buffer, 0, \
                error))\n        return false;\n    rbdkit_filter_buffer_copy(RBDKIT_PAYLOAD, 0, buffer, at, \
                length);\n    return rbdkit_filter_next_pwrite(block, 4096, buffer, 0, flags, error);\n",
        )],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but what was written there is 0x*",
    },
    Case {
        name: "a flush stays in the filter",
        edits: &[
            export!("flushes"),
            Append(
                "filter.c",
                "bool exports_rbdkit_filter_flushes_flush(rbdkit_errno *error)\n{\n    \
                  (void)error;\n    return true;\n}\n",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: flush succeeds, but the disk below got no flush after it was written (* bytes at \
               *): it may be lost",
    },
    Case {
        name: "zeroes become a trim",
        edits: &[
            export!("zeroes"),
            Append(
                "filter.c",
                "bool exports_rbdkit_filter_zeroes_zero(uint64_t offset, \
                  uint64_t length, rbdkit_flags flags, rbdkit_errno *error)\n{\n    (void)flags;\n    return \
                  rbdkit_filter_next_trim(offset, length, 0, error);\n}\n",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but it was zeroed: 0x00*",
    },
    Case {
        name: "the size is larger than the disk",
        edits: &[
            export!("info"),
            Append(
                "filter.c",
                "bool exports_rbdkit_filter_info_get_size(uint64_t *size, \
                  rbdkit_errno *error)\n{\n    bool ok = rbdkit_filter_next_get_size(size, error);\n    *size += \
                  100000;\n    return ok;\n}\nbool \
                  exports_rbdkit_filter_info_block_size(rbdkit_filter_types_block_sizes_t \
                  *sizes, rbdkit_errno *error)\n{\n    (void)sizes;\n    *error = RBDKIT_ENOTSUP;\n    return \
                  false;\n}\nbool exports_rbdkit_filter_info_export_description(mine_string_t *text)\n{\n    \
                  (void)text;\n    return false;\n}\n",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: every read and write fails (*): pread of * bytes at * fails with \
         EINVAL, although the \
               disk below has not failed",
    },
    Case {
        name: "an answer about extents is stretched over the whole range",
        edits: &[
            export!("mapping"),
            Append(
                "filter.c",
                "bool exports_rbdkit_filter_mapping_extents(uint64_t offset, \
                  uint64_t length, rbdkit_flags flags, exports_rbdkit_filter_mapping_list_extent_t *list, rbdkit_errno \
                  *error)\n{\n    rbdkit_filter_next_list_extent_t below;\n    if (!rbdkit_filter_next_extents(offset, \
                  length, flags, &below, error))\n        return false;\n    list->ptr = below.ptr;\n    list->len = \
                  1;\n    list->ptr[0].length = length;\n    return true;\n}\n",
            ),
            Replace("filter.c", "static uint8_t key = 255;", "static uint8_t key = 0;"),
        ],
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: extents of * bytes at * says that offset * reads as zero, but * 0x*",
    },
    Case {
        name: "a parallel filter counts in its memory",
        edits: &[Replace(
            "filter.c",
            WRITE,
            "    static uint32_t writes;\n    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, \
                1, 0);\n    if (++writes == 3)\n        rbdkit_filter_next_zero(40000000, 512, 0, error);\n    return \
                rbdkit_filter_next_pwrite(offset, length, RBDKIT_PAYLOAD, 0, flags, error);\n",
        )],
        found_by: Check(&["--transforms", "own"]),
        says: "rbdkit-filter: error: the filter keeps state in its memory: *; the host gives the calls of a parallel \
               filter to any of its instances (keep the state in maps, slots or scratch, or choose a thread model and \
               a \
               recovery that allow it)",
    },
    Case {
        name: "what was written is gone after a restart",
        edits: &[
            Replace(
                "filter.c",
                WRITE,
                "    (void)flags;\n    if (offset + length > 65536)\n        return \
                 rbdkit_filter_next_pwrite(offset, length, RBDKIT_PAYLOAD, 0, flags, error);\n    return \
                 rbdkit_filter_scratch_pwrite(2, offset, length, RBDKIT_PAYLOAD, 0, error);\n",
            ),
            Replace(
                "filter.c",
                READ,
                "    if (offset + length <= 65536)\n        return \
                     rbdkit_filter_scratch_pread(2, offset, length, RBDKIT_PAYLOAD, 0, error);\n    return true;",
            ),
        ],
        found_by: Check(&["--transforms", "identity"]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but * 0x*",
    },
    Case {
        name: "each connection has a copy of its own, and multi-conn is promised",
        edits: &[
            Replace(
                "filter.c",
                READ_BELOW,
                "    if (offset + length > 65536)\n        return rbdkit_filter_next_pread(offset, \
                     length, RBDKIT_PAYLOAD, 0, error);\n    uint32_t all;\n    if (!has_copy && \
                     (!rbdkit_filter_buffer_alloc(65536, &all, error) || \
                     !rbdkit_filter_next_pread(0, 65536, all, 0, error) \
                     || !rbdkit_filter_scratch_pwrite(0, 0, 65536, all, 0, error)))\n        return \
                     false;\n    has_copy = true;\n    \
                     return rbdkit_filter_scratch_pread(0, offset, length, RBDKIT_PAYLOAD, 0, error);\n",
            ),
            Replace("filter.c", READ, ""),
            Replace(
                "filter.c",
                WRITE,
                "    if (has_copy && offset + length <= 65536 && !rbdkit_filter_scratch_pwrite(0, offset, \
                     length, RBDKIT_PAYLOAD, 0, error))\n        return false;\n    return \
                     rbdkit_filter_next_pwrite(offset, \
                     length, RBDKIT_PAYLOAD, 0, flags, error);\n",
            ),
            Replace("filter.c", "static uint8_t key = 255;", "static uint8_t key = 255;\nstatic bool has_copy;"),
            Replace(
                "filter.c",
                "    rbdkit_add_param(",
                "    about->thread_model = \
                     RBDKIT_FILTER_TYPES_THREAD_MODEL_SERIALIZE_REQUESTS;\n    about->recovery = \
                     RBDKIT_FILTER_TYPES_RECOVERY_LOST;\n    rbdkit_add_param(",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pread of * bytes at * returns 0x* at offset *, but what was written there is 0x*",
    },
    Case {
        name: "a header is not there",
        edits: &[Replace("filter.c", "#include \"rbdkit_filter.h\"", "#include \"rbdkit_filters.h\"")],
        found_by: Build,
        says: "filter.c:6:10: fatal error: 'rbdkit_filters.h' file not found",
    },
];

const CPP_READ: &str = "    if (result)\n        rbdkit::exclusive_or(0, length, key);\n";

pub const CPP: &[Case] = &[
    Case {
        name: "an export is not written",
        edits: &[export!("trims")],
        found_by: Build,
        says: "wit/world.wit exports trims, but the filter does not implement trims.trim: write it, or remove the \
               export",
    },
    Case {
        name: "an operation is not exported",
        edits: &[NO_WRITES],
        found_by: Build,
        says: "the filter implements writes, but wit/world.wit does not export it: the server would never call it. *",
    },
    Case {
        name: "a type is wrong",
        edits: &[Replace(
            "filter.cpp",
            "auto result = rbdkit::next::pread(offset, length);",
            "int result = rbdkit::next::pread(offset, length);",
        )],
        found_by: Build,
        says: "filter.cpp:17:9: error: no viable conversion from *",
    },
    Case {
        name: "the stack overflows",
        edits: &[Replace(
            "filter.cpp",
            CPP_READ,
            "    volatile std::uint8_t deep[4 << 20];\n    for (auto &byte : deep)\n        byte = \
                 length;\n    if (deep[length])\n        rbdkit::exclusive_or(0, length, key);\n",
        )],
        found_by: Check(&["--ops", "20"]),
        says: "rbdkit-filter: error: the filter failed in *: it trapped or reached a limit (the log says why)",
    },
    Case {
        name: "native FUA is promised, and the flag is dropped",
        edits: &[
            export!("features"),
            Replace(
                "filter.cpp",
                "return rbdkit::next::pwrite(offset, length, flags);",
                "(void)flags;\n    return \
                     rbdkit::next::pwrite(offset, length, 0);",
            ),
            Append(
                "filter.cpp",
                "\nbool exports_rbdkit_filter_features_can(exports_rbdkit_filter_features_capabilities_t \
                    *below,\n    exports_rbdkit_filter_features_capabilities_t *can, rbdkit_filter_types_errno_t \
                    *)\n{\n    (void)below;\n    memset(can, 0, sizeof \
                    *can);\n    can->write = can->flush = true;\n    can->fua = \
                    RBDKIT_FILTER_TYPES_SUPPORT_NATIVE;\n    return true;\n}\n",
            ),
        ],
        found_by: Check(&[]),
        says: "rbdkit-filter: error: pwrite of * bytes at * with FUA succeeds, but the disk below got its data (* \
         bytes \
               at *) without FUA, and no flush after it: it may be lost",
    },
    Case {
        name: "trim is promised and not exported",
        edits: &[
            export!("features"),
            Append(
                "filter.cpp",
                "\nbool exports_rbdkit_filter_features_can(exports_rbdkit_filter_features_capabilities_t \
                    *below,\n    exports_rbdkit_filter_features_capabilities_t *can, rbdkit_filter_types_errno_t \
                    *)\n{\n    *can = \
                    *below;\n    return true;\n}\n",
            ),
        ],
        found_by: Check(&[]),
        says: "mine: can: it says that it can trim, and cannot",
    },
];
