//! The client of a connection.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::flag::Flag;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TCP over IPv4 or IPv6.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix,
    /// AF_VSOCK.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// Standard input and output, or unknown.
    Unknown,
}

/// One client connection. The handles of all layers share it.
#[derive(Debug)]
pub struct Client {
    /// Not reused while the server runs.
    pub id: u64,
    /// The other end.
    pub peer: Peer,
    /// Process, user and group id, if the kernel tells them (Unix sockets).
    pub credentials: Option<(i64, i64, i64)>,
    /// The security context that the kernel reports (SELinux, AppArmor; Unix sockets).
    pub security_context: Option<String>,
    /// Set once the connection is encrypted.
    tls: OnceLock<TlsPeer>,
    gone: Flag,
    disconnect: Flag,
    after_answers: AtomicBool,
    cut: Flag,
}

/// What TLS says of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsPeer {
    /// The subject's name in its certificate, as RFC 4514 writes it. None if it showed none.
    pub subject: Option<String>,
    /// The issuer's name.
    pub issuer: Option<String>,
}

/// How a layer ends the connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No new request is read. The answers of the requests under way are sent first.
    AfterAnswers,
    /// The requests under way get no answer.
    AtOnce,
}

impl Client {
    /// A client that is connected; `tls` says whether the connection is encrypted already.
    pub fn new(id: u64, peer: Peer, credentials: Option<(i64, i64, i64)>, tls: bool) -> Client {
        Client {
            id,
            peer,
            credentials,
            security_context: None,
            tls: if tls { OnceLock::from(TlsPeer::default()) } else { OnceLock::new() },
            gone: Flag::default(),
            disconnect: Flag::default(),
            after_answers: AtomicBool::new(false),
            cut: Flag::default(),
        }
    }

    /// With the security context that the kernel reports.
    #[must_use]
    pub fn with_security_context(mut self, context: Option<String>) -> Client {
        self.security_context = context;
        self
    }

    /// A client that stands for many, for a layer that opens the layers below once for all of its
    /// connections. Its number is 2^63 or more; those of connections are below.
    pub fn for_many() -> Client {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
        Client::new(NEXT.fetch_add(1, Ordering::Relaxed), Peer::Unknown, None, false)
    }

    /// Records that the connection is encrypted from now on.
    pub fn begin_tls(&self, peer: TlsPeer) {
        let _ = self.tls.set(peer);
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls.get().is_some()
    }

    /// What TLS says of the client. None if the connection is not encrypted.
    pub fn tls_peer(&self) -> Option<&TlsPeer> {
        self.tls.get()
    }

    /// Records that the client has disconnected or that the server stops. Calls that wait on the
    /// client's behalf may give up.
    pub fn set_gone(&self) {
        self.gone.set();
    }

    /// Whether [`Client::set_gone`] was called.
    pub fn is_gone(&self) -> bool {
        self.gone.is_set()
    }

    /// Returns once [`Client::set_gone`] was called.
    pub async fn until_gone(&self) {
        self.gone.wait().await;
    }

    /// Asks the server to close this connection, because the layer can give no useful answer any
    /// more.
    pub fn disconnect(&self) {
        self.disconnect.set();
    }

    /// Asks the server to end this connection, because a layer wants it.
    pub fn end(&self, ending: Ending) {
        match ending {
            // An earlier wish that gives up the requests under way stays as it is.
            Ending::AfterAnswers if self.disconnect.is_set() => {}
            Ending::AfterAnswers => self.after_answers.store(true, Ordering::Release),
            Ending::AtOnce => self.cut.set(),
        }
        self.disconnect.set();
    }

    /// Whether the requests under way are to be answered before the connection ends.
    pub fn ends_after_answers(&self) -> bool {
        self.after_answers.load(Ordering::Acquire)
    }

    /// Whether the connection has to end without waiting for anything ([`Ending::AtOnce`]).
    pub fn is_cut(&self) -> bool {
        self.cut.is_set()
    }

    /// Returns once the connection has to end without waiting for anything ([`Ending::AtOnce`]).
    pub async fn until_cut(&self) {
        self.cut.wait().await;
    }

    /// Whether [`Client::disconnect`] or [`Client::end`] was called.
    pub fn is_disconnect_requested(&self) -> bool {
        self.disconnect.is_set()
    }

    /// Returns once [`Client::disconnect`] or [`Client::end`] was called. The server then reads no
    /// more requests, lets those in flight end, and closes the connection.
    pub async fn until_disconnect_requested(&self) {
        self.disconnect.wait().await;
    }
}
