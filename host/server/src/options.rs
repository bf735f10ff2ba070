//! What the command line decides: options, limits and timeouts.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_nbd::TlsPolicy;
use rbdkit_plugin_api::MAX_REQUEST;
use rbdkit_tls::ServerTls;

use super::budget::Budget;

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// `-r`: no layer is opened for writing.
    pub readonly: bool,
    /// Use the oldstyle handshake (`-o`): clients choose nothing and get the default export.
    pub oldstyle: bool,
    /// Offer structured replies; `--no-structured-replies` clears it.
    pub structured_replies: bool,
    /// Offer metadata contexts; `--no-meta-contexts` clears it.
    pub meta_contexts: bool,
    /// Offer multi-conn if the layers support it; `--no-multi-conn` clears it.
    pub multi_conn: bool,
    /// Let the kernel check that idle clients are still there (`--keepalive`).
    pub keepalive: bool,
    /// `--mask-handshake`: the handshake flags that the server may offer.
    pub handshake_mask: Option<u16>,
    /// TLS; none if clients cannot have it.
    pub tls: Option<TlsOptions>,
    /// Limits and timeouts.
    pub limits: ServerLimits,
}

/// The TLS of a server.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Every client has to use it.
    pub required: bool,
    /// Makes the sessions.
    pub server: Arc<ServerTls>,
}

impl ServerOptions {
    /// What the handshake does about TLS.
    pub(super) fn tls_policy(&self) -> TlsPolicy {
        match &self.tls {
            None => TlsPolicy::Off,
            Some(TlsOptions { required: false, .. }) => TlsPolicy::On,
            Some(TlsOptions { required: true, .. }) => TlsPolicy::Require,
        }
    }
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            readonly: false,
            oldstyle: false,
            structured_replies: true,
            meta_contexts: true,
            multi_conn: true,
            keepalive: false,
            handshake_mask: None,
            tls: None,
            limits: ServerLimits::default(),
        }
    }
}

/// Limits and timeouts. The server raises a limit that is too small to work to the smallest value
/// that works: one request, [`MAX_REQUEST`] bytes, one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Requests of one connection in flight (`-t`). nbdkit's default is 16, with a thread for each.
    /// Here a request in flight needs no thread. The default is 256, twice the queue depth of the
    /// deepest clients (128), so clients do not wait for this limit.
    pub requests_per_connection: usize,
    /// Payload bytes of one connection in flight. The default, 128 MiB, is two of the largest
    /// requests: the server receives or runs one while it writes the reply to the other.
    pub bytes_per_connection: u64,
    /// Payload bytes of all connections in flight. The default, 512 MiB, is four connections at
    /// their own limit, or 128 requests of 4 MiB. Disks and networks cannot use more.
    pub bytes_in_all: u64,
    /// Bytes of the buffers into which the server receives requests, for all connections. The
    /// default, 64 MiB, is a buffer for each of 1024 connections that receive at the same moment. A
    /// connection that gets none is slower.
    pub receive_bytes: u64,
    /// Bytes of the options of more than 4 KiB of all clients that negotiate. Hardly any client
    /// sends one. The default, 16 MiB, is enough for 128 clients at a time. Others are
    /// disconnected.
    pub handshake_bytes: u64,
    /// Bytes of all TLS sessions: 49 KiB each, and 65 KiB more for one whose client has not taken
    /// all of a long reply. The default, 512 MiB, is enough for 4096 sessions that all do. A client
    /// for whose session nothing is left is refused TLS.
    pub tls_bytes: u64,
    /// Clients at a time; [`connections`](super::connections) says what happens to further ones.
    /// The default, 4096, keeps idle clients below 64 MiB, at about 10 KiB each.
    pub connections: usize,
    /// Timeout for each whole message of the handshake, in either direction. The default, 60 s, is
    /// long enough for a person who types the messages.
    pub handshake_timeout: Duration,
    /// Timeout for the whole handshake, from the end of preconnect to the first request
    /// (`--timeout`). None, the default: only the messages have a timeout.
    pub negotiation_timeout: Option<Duration>,
    /// After this time the server disconnects a client that holds bytes which others wait for, and
    /// does too little to give them back ([`stall`](super::stall)). The default, 10 s, is longer
    /// than a network fault that TCP survives unnoticed.
    pub stall_timeout: Duration,
    /// At the end of a connection: after this time without progress the server stops waiting for
    /// the client to take its last replies. Default 10 s.
    pub reply_timeout: Duration,
    /// How often a server that is in use frees the memory that was not needed since the last time
    /// ([`trim`](super::trim)).
    ///
    /// Default 5 s: unused memory is freed at most two intervals after the last request. A burst
    /// that comes again within one interval finds all its buffers. A later burst spends some
    /// milliseconds: 24 MiB of buffers are 6000 pages of half a microsecond each.
    pub trim_interval: Duration,
    /// How long a server that stops waits for operations and for clients that do not take their
    /// replies. After this time calls of filters end as if their client had gone, and plugins are
    /// told to end what does not write. The default, 1 s, is longer than most operations take.
    pub stop_grace: Duration,
    /// How long a server that stops waits for its connections while the plugin writes nothing. The
    /// default, 2 s, leaves as much again for the end of the layers within the 5 s that a stop may
    /// take.
    pub stop_timeout: Duration,
    /// How long a server that stops waits for its connections while the plugin writes. The default,
    /// 30 s, is shorter than what service managers allow (90 s).
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            requests_per_connection: 256,
            bytes_per_connection: 128 << 20,
            bytes_in_all: 512 << 20,
            receive_bytes: 64 << 20,
            handshake_bytes: 16 << 20,
            tls_bytes: 512 << 20,
            connections: 4096,
            handshake_timeout: Duration::from_secs(60),
            negotiation_timeout: None,
            stall_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(10),
            trim_interval: Duration::from_secs(5),
            stop_grace: Duration::from_secs(1),
            stop_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// The most connections that can be counted, with those that are on the way out.
const MAX_CONNECTIONS: usize = 1 << 28;

impl ServerLimits {
    /// Every limit raised to the smallest value that works.
    pub(super) fn raised(mut self) -> ServerLimits {
        self.requests_per_connection = self.requests_per_connection.max(1);
        self.bytes_per_connection = self.bytes_per_connection.max(MAX_REQUEST.into());
        self.connections = self.connections.clamp(1, MAX_CONNECTIONS);
        self.bytes_in_all = self.bytes_in_all.max(Budget::least(self.connections as u64));
        // So a single client waits at its own limit. If it waited at the server's limit, it would
        // be treated as keeping others waiting, although only itself waits.
        self.bytes_per_connection = self.bytes_per_connection.min(self.bytes_in_all);
        self
    }
}
