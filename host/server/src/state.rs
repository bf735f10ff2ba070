//! [`ServerState`]: what all connections of a server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbdkit_chain::Chain;
use rbdkit_plugin_api::{Client, Peer};
use tokio::sync::{Notify, Semaphore};

use super::budget::Budget;
use super::lists::ExportLists;
use super::options::ServerOptions;
use super::receive::ReceivePool;
use super::thread_permits::ThreadPermits;

/// What all connections of a server share.
pub(super) struct ServerState {
    pub chain: Arc<Chain>,
    pub options: ServerOptions,
    pub budget: Arc<Budget>,
    pub receive_pool: ReceivePool,
    pub lists: Arc<ExportLists>,
    /// One permit for each client.
    pub connection_permits: Arc<Semaphore>,
    /// One permit for each client that has a thread.
    pub thread_permits: ThreadPermits,
    /// Notified when a connection has closed, because file descriptors may be free again.
    pub connection_closed: Notify,
    next_id: AtomicU64,
}

impl ServerState {
    pub fn new(chain: Arc<Chain>, mut options: ServerOptions) -> ServerState {
        options.limits = options.limits.raised();
        let receive_pool = ReceivePool::new(Arc::clone(chain.pool().activity()));
        ServerState {
            chain,
            budget: Arc::new(Budget::new(options.limits.bytes_in_all)),
            receive_pool,
            lists: Arc::new(ExportLists::new()),
            connection_permits: Arc::new(Semaphore::new(options.limits.connections)),
            thread_permits: ThreadPermits::new(),
            connection_closed: Notify::new(),
            next_id: AtomicU64::new(1),
            options,
        }
    }

    /// A client with the next free number.
    pub fn new_client(&self, peer: Peer, credentials: Option<(i64, i64, i64)>) -> Arc<Client> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Client::new(id, peer, credentials, false))
    }
}
