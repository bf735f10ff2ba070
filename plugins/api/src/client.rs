//! The client of a connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    /// Whether the connection is encrypted.
    pub tls: bool,
    gone: Flag,
    disconnect: Flag,
}

impl Client {
    /// A client that is connected.
    pub fn new(id: u64, peer: Peer, credentials: Option<(i64, i64, i64)>, tls: bool) -> Client {
        let (gone, disconnect) = (Flag::default(), Flag::default());
        Client { id, peer, credentials, security_context: None, tls, gone, disconnect }
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
        Client::new(NEXT.fetch_add(1, Relaxed), Peer::Unknown, None, false)
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

    /// Whether [`Client::disconnect`] was called.
    pub fn is_disconnect_requested(&self) -> bool {
        self.disconnect.is_set()
    }

    /// Returns once [`Client::disconnect`] was called. The server then reads no more requests, lets
    /// those in flight end, and closes the connection.
    pub async fn until_disconnect_requested(&self) {
        self.disconnect.wait().await;
    }
}
