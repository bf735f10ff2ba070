//! [`ServerState`]: what all connections of a server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbdkit_chain::Chain;
use rbdkit_plugin_api::rate::Rate;
use rbdkit_plugin_api::{Client, Peer, Quota, Usage};
use tokio::sync::{Notify, Semaphore};

use super::budget::Budget;
use super::connections::Connections;
use super::lists::ExportLists;
use super::options::ServerOptions;
use super::peer::Process;
use super::receive::ReceivePool;
use super::thread_permits::ThreadPermits;
use super::tls::TlsMemory;

/// The most calls of the handshake that go on without their client. Beyond that a client that has
/// left keeps its place until its call has ended, so that clients cannot start calls without end.
/// 256 is as many as a filter may have detached operations.
pub(super) const MAX_STRAY_CALLS: usize = 256;

/// What all connections of a server share.
pub(super) struct ServerState {
    pub chain: Arc<Chain>,
    pub options: ServerOptions,
    pub budget: Arc<Budget>,
    pub receive_pool: ReceivePool,
    /// Bytes of the long options of all clients that negotiate.
    pub handshakes: Arc<Quota>,
    /// Bytes of the TLS sessions of all clients.
    pub tls_memory: TlsMemory,
    pub lists: Arc<ExportLists>,
    /// Who may connect.
    pub connections: Arc<Connections>,
    /// The most clients at a time, without those that have to go.
    pub max_connections: usize,
    /// The rate of messages about clients that may not connect.
    pub refused_log: Rate,
    /// One permit for each connection that exists.
    pub connection_permits: Arc<Semaphore>,
    /// One permit for each call that goes on without its client.
    pub stray_permits: Arc<Semaphore>,
    /// One permit for each client that has a thread.
    pub thread_permits: ThreadPermits,
    /// Notified when a connection has closed, because file descriptors may be free again.
    pub connection_closed: Notify,
    next_id: AtomicU64,
}

impl ServerState {
    pub fn new(chain: Arc<Chain>, mut options: ServerOptions) -> ServerState {
        options.limits = options.limits.raised();
        let max_connections = options.limits.connections;
        options.limits.connections = Connections::most(max_connections);
        let receive_pool = ReceivePool::new(Arc::clone(chain.pool().activity()), options.limits.receive_bytes);
        ServerState {
            chain,
            budget: Arc::new(Budget::new(options.limits.bytes_in_all, options.limits.connections as u64)),
            receive_pool,
            handshakes: Arc::new(Quota::new(options.limits.handshake_bytes)),
            tls_memory: TlsMemory::new(options.limits.tls_bytes),
            lists: Arc::new(ExportLists::new()),
            connections: Connections::new(max_connections),
            max_connections,
            refused_log: Rate::new(1, 10),
            connection_permits: Arc::new(Semaphore::new(options.limits.connections)),
            stray_permits: Arc::new(Semaphore::new(MAX_STRAY_CALLS)),
            thread_permits: ThreadPermits::new(),
            connection_closed: Notify::new(),
            next_id: AtomicU64::new(1),
            options,
        }
    }

    /// What the server uses of its limits, and the chain of its own.
    pub fn usage(&self) -> Vec<Usage> {
        let own = [
            self.budget.usage(),
            self.receive_pool.usage(),
            self.handshakes.usage("handshakes"),
            self.connections.usage(),
        ];
        // A server without TLS has no account for it.
        let tls = self.options.tls.as_ref().map(|_| self.tls_memory.usage());
        let own = own.into_iter().chain(tls);
        own.chain(self.chain.usage()).collect()
    }

    /// A client with the next free number.
    pub fn new_client(&self, peer: Peer, process: Process) -> Arc<Client> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let client = Client::new(id, peer, process.credentials, false);
        Arc::new(client.with_security_context(process.security_context))
    }
}
