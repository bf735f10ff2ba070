//! The client: a program on the same machine, over a Unix socket.

use crate::Errno;
use crate::host::client::Peer;
use crate::testing::call::{CLIENTS, attempt, with};

pub(crate) fn peer_name() -> Peer {
    with("client.peer-name", &CLIENTS, |_| Peer::Unix)
}

/// The process, user and group of the test.
pub(crate) fn peer_credentials() -> Result<(i64, i64, i64), Errno> {
    attempt(&CLIENTS, |_| Ok((std::process::id().into(), 0, 0)))
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
