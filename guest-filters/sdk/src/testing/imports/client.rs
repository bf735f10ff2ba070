//! The client: what the test says of it.

use crate::Errno;
use crate::host::client::{Ending, Peer};
use crate::testing::call::{CLIENTS, attempt, with};

pub(crate) fn peer_name() -> Peer {
    with("client.peer-name", &CLIENTS, |call| call.client().peer.clone())
}

pub(crate) fn peer_credentials() -> Result<(i64, i64, i64), Errno> {
    attempt(&CLIENTS, |call| call.client().credentials.ok_or(Errno::Enxio))
}

pub(crate) fn disconnect(e: Ending) -> Result<(), Errno> {
    attempt(&CLIENTS, |call| {
        // Before the export is open the connection has its number already.
        let connection = call.connection_id().unwrap_or(call.world().last_connection + 1);
        let mut world = call.world();
        if !world.may_use_powers {
            return Err(Errno::Eperm);
        }
        let known = world.disconnected.entry(connection).or_insert(e);
        if e == Ending::AtOnce {
            *known = e;
        }
        Ok(())
    })
}

pub(crate) fn is_tls() -> bool {
    with("client.is-tls", &CLIENTS, |call| call.client().is_tls)
}

pub(crate) fn tls_subject() -> Result<String, Errno> {
    attempt(&CLIENTS, |call| call.client().tls_subject.clone().ok_or(Errno::Enxio))
}

pub(crate) fn tls_issuer() -> Result<String, Errno> {
    attempt(&CLIENTS, |call| call.client().tls_issuer.clone().ok_or(Errno::Enxio))
}

pub(crate) fn security_context() -> Result<String, Errno> {
    attempt(&CLIENTS, |call| call.client().security_context.clone().ok_or(Errno::Enxio))
}
