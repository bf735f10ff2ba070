//! The client: a program on the same machine, over a Unix socket.

use crate::Errno;
use crate::host::client::{Ending, Peer};
use crate::testing::call::{CLIENTS, attempt, with};

pub(crate) fn peer_name() -> Peer {
    with("client.peer-name", &CLIENTS, |_| Peer::Unix)
}

/// The process, user and group of the test.
pub(crate) fn peer_credentials() -> Result<(i64, i64, i64), Errno> {
    attempt(&CLIENTS, |_| Ok((std::process::id().into(), 0, 0)))
}

pub(crate) fn disconnect(e: Ending) -> Result<(), Errno> {
    attempt(&CLIENTS, |call| {
        let mut world = call.world();
        if !world.may_use_powers {
            return Err(Errno::Eperm);
        }
        // In the phase N there is no connection yet, and nothing to see.
        if let Some(connection) = call.connection_id() {
            let known = world.disconnected.entry(connection).or_insert(e);
            if e == Ending::AtOnce {
                *known = e;
            }
        }
        Ok(())
    })
}

pub(crate) fn is_tls() -> bool {
    with("client.is-tls", &CLIENTS, |_| false)
}

/// There is no TLS.
pub(crate) fn tls_subject() -> Result<String, Errno> {
    attempt(&CLIENTS, |_| Err(Errno::Enxio))
}

/// There is no TLS.
pub(crate) fn tls_issuer() -> Result<String, Errno> {
    attempt(&CLIENTS, |_| Err(Errno::Enxio))
}

/// There is no security module.
pub(crate) fn security_context() -> Result<String, Errno> {
    attempt(&CLIENTS, |_| Err(Errno::Enxio))
}
