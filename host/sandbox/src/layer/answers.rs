//! What a connection is told of its export, from what the guest answers.

use rbdkit_plugin_api::{BlockSizes, Capabilities, Errno, Result};

use super::offers;
use crate::connection::conn::Connection;
use crate::guest::exported::Exported;

/// What the layer below can do.
pub(super) fn below(conn: &Connection) -> Capabilities {
    conn.next().map_or(Capabilities::READ_ONLY, |next| next.hop.can())
}

/// What a connection is offered if the guest claims this, and which claims are false.
pub(super) fn offered(
    exported: &Exported,
    conn: &Connection,
    claimed: Option<Capabilities>,
) -> (Capabilities, Vec<&'static str>) {
    let (mut can, false_claims) = offers::settle(exported, below(conn), claimed);
    can.write &= !conn.readonly;
    (can.normalized(), false_claims)
}

/// The answer of `info.block-size`, where ENOTSUP means that there are none.
pub(super) fn block_sizes<S: Into<BlockSizes>>(answer: Result<S>) -> Result<Option<BlockSizes>> {
    match answer {
        Ok(sizes) => Ok(Some(sizes.into())),
        Err(error) if error.errno() == Errno::Enotsup => Ok(None),
        Err(error) => Err(error),
    }
}
