//! The contract `wit/filter.wit` as Rust types, made by wasmtime's `bindgen!`, and conversions to
//! and from the types of the plugin API.
//!
//! Imports that may wait are async, and suspend the guest on its fiber. All imports may trap,
//! because that is the answer to a guest's mistake. Imports with an errno in their result answer an
//! [`ImportError`], which is an errno or a trap.
#![allow(missing_docs, reason = "the generated types have the documentation of the contract")]

use rbdkit_plugin_api as api;

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "rbdkit:filter/everything",
    imports: {
        "rbdkit:filter/next.block-size": async | trappable,
        "rbdkit:filter/next.export-description": async | trappable,
        "rbdkit:filter/next.pread": async | trappable,
        "rbdkit:filter/next.pwrite": async | trappable,
        "rbdkit:filter/next.flush": async | trappable,
        "rbdkit:filter/next.flush-all": async | trappable,
        "rbdkit:filter/next.trim": async | trappable,
        "rbdkit:filter/next.zero": async | trappable,
        "rbdkit:filter/next.cache": async | trappable,
        "rbdkit:filter/next.extents": async | trappable,
        "rbdkit:filter/next.extents-forward": async | trappable,
        "rbdkit:filter/next.extents-until": async | trappable,
        "rbdkit:filter/next.extents-forward-until": async | trappable,
        "rbdkit:filter/next-open.open": async | trappable,
        "rbdkit:filter/next-open.open-shared": async | trappable,
        "rbdkit:filter/next-open.reopen": async | trappable,
        "rbdkit:filter/next-open.preconnect": async | trappable,
        "rbdkit:filter/next-open.list-exports": async | trappable,
        "rbdkit:filter/next-open.default-export": async | trappable,
        "rbdkit:filter/buffer.mismatch": async | trappable,
        "rbdkit:filter/buffer.xor": async | trappable,
        "rbdkit:filter/buffer.translate": async | trappable,
        "rbdkit:filter/buffer.swap": async | trappable,
        "rbdkit:filter/buffer.find": async | trappable,
        "rbdkit:filter/buffer.sha256": async | trappable,
        "rbdkit:filter/buffer.crc32c": async | trappable,
        "rbdkit:filter/crypto.derive-pbkdf2": async | trappable,
        "rbdkit:filter/crypto.derive-argon2": async | trappable,
        "rbdkit:filter/crypto.unwrap": async | trappable,
        "rbdkit:filter/crypto.matches": async | trappable,
        "rbdkit:filter/crypto.encrypt": async | trappable,
        "rbdkit:filter/crypto.decrypt": async | trappable,
        "rbdkit:filter/locks.lock": async | trappable,
        "rbdkit:filter/scratch.pread": async | trappable,
        "rbdkit:filter/scratch.pwrite": async | trappable,
        "rbdkit:filter/scratch.punch": async | trappable,
        "rbdkit:filter/files.sync": async | trappable,
        "rbdkit:filter/storage.pread": async | trappable,
        "rbdkit:filter/storage.pwrite": async | trappable,
        "rbdkit:filter/storage.read": async | trappable,
        "rbdkit:filter/storage.write": async | trappable,
        "rbdkit:filter/storage.resize": async | trappable,
        "rbdkit:filter/storage.punch": async | trappable,
        "rbdkit:filter/storage.flush": async | trappable,
        "rbdkit:filter/disks.size": async | trappable,
        "rbdkit:filter/disks.pread": async | trappable,
        "rbdkit:filter/disks.extents": async | trappable,
        "rbdkit:filter/disks.cache": async | trappable,
        "rbdkit:filter/scripts.run": async | trappable,
        "rbdkit:filter/server.sleep": async | trappable,
        "rbdkit:filter/gate.close": async | trappable,
        default: trappable,
    },
    trappable_error_type: {
        "rbdkit:filter/types.errno" => super::import_error::ImportError,
    },
    exports: { default: async },
});

pub use self::rbdkit::filter as host;
use self::rbdkit::filter::types::{BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, ExtentType};
use self::rbdkit::filter::types::{Support, ThreadModel};
use super::import_error::ImportError;
pub use exports::rbdkit::filter as guest;

impl From<api::Errno> for Errno {
    fn from(errno: api::Errno) -> Errno {
        match errno {
            api::Errno::Eperm => Errno::Eperm,
            api::Errno::Enoent => Errno::Enoent,
            api::Errno::Eio => Errno::Eio,
            api::Errno::Enomem => Errno::Enomem,
            api::Errno::Einval => Errno::Einval,
            api::Errno::Enospc => Errno::Enospc,
            api::Errno::Erofs => Errno::Erofs,
            api::Errno::Enotsup => Errno::Enotsup,
            api::Errno::Eoverflow => Errno::Eoverflow,
            api::Errno::Eshutdown => Errno::Eshutdown,
            api::Errno::Etimedout => Errno::Etimedout,
            api::Errno::Edeadlk => Errno::Edeadlk,
            api::Errno::Enxio => Errno::Enxio,
        }
    }
}

impl From<Errno> for api::Errno {
    fn from(errno: Errno) -> api::Errno {
        match errno {
            Errno::Eperm => api::Errno::Eperm,
            Errno::Enoent => api::Errno::Enoent,
            Errno::Eio => api::Errno::Eio,
            Errno::Enomem => api::Errno::Enomem,
            Errno::Einval => api::Errno::Einval,
            Errno::Enospc => api::Errno::Enospc,
            Errno::Erofs => api::Errno::Erofs,
            Errno::Enotsup => api::Errno::Enotsup,
            Errno::Eoverflow => api::Errno::Eoverflow,
            Errno::Eshutdown => api::Errno::Eshutdown,
            Errno::Etimedout => api::Errno::Etimedout,
            Errno::Edeadlk => api::Errno::Edeadlk,
            Errno::Enxio => api::Errno::Enxio,
        }
    }
}

impl From<Errno> for ImportError {
    fn from(errno: Errno) -> ImportError {
        ImportError::Errno(errno.into())
    }
}

impl From<api::Flags> for CommandFlags {
    fn from(flags: api::Flags) -> CommandFlags {
        let mut all = CommandFlags::empty();
        for (set, flag) in [
            (flags.fua, CommandFlags::FUA),
            (flags.may_trim, CommandFlags::MAY_TRIM),
            (flags.fast_zero, CommandFlags::FAST_ZERO),
            (flags.req_one, CommandFlags::REQ_ONE),
        ] {
            if set {
                all |= flag;
            }
        }
        all
    }
}

impl From<CommandFlags> for api::Flags {
    fn from(flags: CommandFlags) -> api::Flags {
        api::Flags {
            fua: flags.contains(CommandFlags::FUA),
            may_trim: flags.contains(CommandFlags::MAY_TRIM),
            fast_zero: flags.contains(CommandFlags::FAST_ZERO),
            req_one: flags.contains(CommandFlags::REQ_ONE),
        }
    }
}

impl From<ThreadModel> for api::ThreadModel {
    fn from(model: ThreadModel) -> api::ThreadModel {
        match model {
            ThreadModel::SerializeConnections => api::ThreadModel::SerializeConnections,
            ThreadModel::SerializeAllRequests => api::ThreadModel::SerializeAllRequests,
            ThreadModel::SerializeRequests => api::ThreadModel::SerializeRequests,
            ThreadModel::Parallel => api::ThreadModel::Parallel,
        }
    }
}

impl From<api::ThreadModel> for ThreadModel {
    fn from(model: api::ThreadModel) -> ThreadModel {
        match model {
            api::ThreadModel::SerializeConnections => ThreadModel::SerializeConnections,
            api::ThreadModel::SerializeAllRequests => ThreadModel::SerializeAllRequests,
            api::ThreadModel::SerializeRequests => ThreadModel::SerializeRequests,
            api::ThreadModel::Parallel => ThreadModel::Parallel,
        }
    }
}

impl From<Support> for api::Support {
    fn from(support: Support) -> api::Support {
        match support {
            Support::None => api::Support::None,
            Support::Emulate => api::Support::Emulate,
            Support::Native => api::Support::Native,
        }
    }
}

impl From<api::Support> for Support {
    fn from(support: api::Support) -> Support {
        match support {
            api::Support::None => Support::None,
            api::Support::Emulate => Support::Emulate,
            api::Support::Native => Support::Native,
        }
    }
}

impl From<Capabilities> for api::Capabilities {
    fn from(can: Capabilities) -> api::Capabilities {
        api::Capabilities {
            write: can.write,
            flush: can.flush,
            rotational: can.rotational,
            trim: can.trim,
            fast_zero: can.fast_zero,
            extents: can.extents,
            multi_conn: can.multi_conn,
            zero: can.zero.into(),
            fua: can.fua.into(),
            cache: can.cache.into(),
        }
    }
}

impl From<api::Capabilities> for Capabilities {
    fn from(can: api::Capabilities) -> Capabilities {
        Capabilities {
            write: can.write,
            flush: can.flush,
            rotational: can.rotational,
            trim: can.trim,
            fast_zero: can.fast_zero,
            extents: can.extents,
            multi_conn: can.multi_conn,
            zero: can.zero.into(),
            fua: can.fua.into(),
            cache: can.cache.into(),
        }
    }
}

impl From<BlockSizes> for api::BlockSizes {
    fn from(sizes: BlockSizes) -> api::BlockSizes {
        api::BlockSizes { minimum: sizes.minimum, preferred: sizes.preferred, maximum: sizes.maximum }
    }
}

impl From<api::BlockSizes> for BlockSizes {
    fn from(sizes: api::BlockSizes) -> BlockSizes {
        BlockSizes { minimum: sizes.minimum, preferred: sizes.preferred, maximum: sizes.maximum }
    }
}

impl From<api::Extent> for Extent {
    fn from(extent: api::Extent) -> Extent {
        let mut kind = ExtentType::empty();
        if extent.hole {
            kind |= ExtentType::HOLE;
        }
        if extent.zero {
            kind |= ExtentType::ZERO;
        }
        Extent { offset: extent.offset, length: extent.length, kind }
    }
}

impl From<Extent> for api::Extent {
    fn from(extent: Extent) -> api::Extent {
        api::Extent {
            offset: extent.offset,
            length: extent.length,
            hole: extent.kind.contains(ExtentType::HOLE),
            zero: extent.kind.contains(ExtentType::ZERO),
        }
    }
}

impl From<ExportEntry> for api::ExportEntry {
    fn from(entry: ExportEntry) -> api::ExportEntry {
        api::ExportEntry { name: entry.name, description: entry.description }
    }
}

impl From<api::ExportEntry> for ExportEntry {
    fn from(entry: api::ExportEntry) -> ExportEntry {
        ExportEntry { name: entry.name, description: entry.description }
    }
}
