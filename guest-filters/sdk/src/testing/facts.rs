//! What a filter can learn of a client.

use crate::host::client::Peer;

/// What a filter can learn of a client.
#[derive(Clone, Debug)]
pub(super) struct ClientFacts {
    pub(super) peer: Peer,
    /// Process, user and group.
    pub(super) credentials: Option<(i64, i64, i64)>,
    pub(super) is_tls: bool,
    pub(super) tls_subject: Option<String>,
    pub(super) tls_issuer: Option<String>,
    pub(super) security_context: Option<String>,
}

impl Default for ClientFacts {
    /// The test itself, over a Unix socket, as root.
    fn default() -> ClientFacts {
        ClientFacts {
            peer: Peer::Unix,
            credentials: Some((std::process::id().into(), 0, 0)),
            is_tls: false,
            tls_subject: None,
            tls_issuer: None,
            security_context: None,
        }
    }
}
