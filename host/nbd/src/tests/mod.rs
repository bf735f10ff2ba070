//! The protocol by itself. Bytes are written by hand from the specification, so that the same mistake cannot sit on both sides.

mod handshake;
mod properties;
mod transmission;

use rbdkit_plugin_api::{BlockSizes, Capabilities, Support};

use super::{Export, Session};

fn everything() -> Capabilities {
    Capabilities {
        write: true,
        flush: true,
        rotational: true,
        trim: true,
        fast_zero: true,
        extents: true,
        multi_conn: true,
        zero: Support::Native,
        fua: Support::Native,
        cache: Support::Native,
    }
}

fn export() -> Export {
    Export {
        size: 1 << 20,
        can: everything(),
        name: Some("name".into()),
        description: Some("text".into()),
        block_sizes: Some(BlockSizes { minimum: 1, preferred: 4096, maximum: 65536 }),
    }
}

fn session() -> Session {
    Session { size: 1 << 20, can: everything(), structured: true, base_allocation: true }
}
