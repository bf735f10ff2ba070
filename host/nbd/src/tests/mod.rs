//! Tests of the protocol alone. Their bytes are written by hand from the specification, so that
//! test and code cannot share a mistake.

mod extended;
mod handshake;
mod properties;
mod transmission;

use rbdkit_plugin_api::{BlockSizes, Capabilities, Support};

use super::{Export, ReplyFormat, Session};

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
    Session {
        size: 1 << 20,
        can: everything(),
        reply_format: ReplyFormat::Structured,
        base_allocation: true,
        block_sizes: None,
    }
}
