//! The chain's part of a layer's thread model: who may open the layer, and where its requests wait.
//!
//! A layer that serves one connection at a time has one permit for a connection. A client takes the
//! permits of all such layers before the first layer is opened, from the top down, and holds them
//! until the last of its hops is dropped. If a layer waited for its permit while the layers above
//! it were being opened, those could hold something that the previous connection needs in order to
//! end (such as a filter's only instance). The permits belong to the client and not to a hop, so
//! that a filter can reopen the next layer before it closes the old handle.
//!
//! A layer that serves one request at a time has a turn for a request, of each hop or of all hops
//! ([`turns`](super::turns)). Filters limit their requests themselves, by their instances, so only
//! the plugin has turns.

use std::sync::Arc;

use rbdkit_plugin_api::{Client, ThreadModel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::turns::{ConnectionTurns, TurnQueue};
use super::writes::Writes;

/// What the hops of one layer share.
pub(super) struct ThreadModelGate {
    /// One permit, if the layer serves one connection at a time.
    connections: Option<Arc<Semaphore>>,
    requests: MaxRequests,
    /// Counts the layer's writes. None for a filter.
    writes: Option<Arc<Writes>>,
}

/// Who limits the requests that run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestLimit {
    /// The layer itself.
    ByLayer,
    /// The layer's hops.
    ByHop,
}

/// How many requests the hops let through at once.
enum MaxRequests {
    Unlimited,
    OnePerHop,
    OneInAll(Arc<TurnQueue>),
}

impl ThreadModelGate {
    pub fn new(model: ThreadModel, limit: RequestLimit, writes: Option<Arc<Writes>>) -> ThreadModelGate {
        let connections = (model == ThreadModel::SerializeConnections).then(|| Arc::new(Semaphore::new(1)));
        let requests = match model {
            _ if limit == RequestLimit::ByLayer => MaxRequests::Unlimited,
            ThreadModel::Parallel => MaxRequests::Unlimited,
            ThreadModel::SerializeRequests | ThreadModel::SerializeConnections => MaxRequests::OnePerHop,
            ThreadModel::SerializeAllRequests => MaxRequests::OneInAll(Arc::default()),
        };
        ThreadModelGate { connections, requests, writes }
    }

    /// The queue for the requests of a new hop. The hop holds `permits` for its life.
    pub fn request_queue(&self, permits: &Arc<ConnectionPermits>, client: &Arc<Client>) -> RequestQueue {
        let requests = match &self.requests {
            MaxRequests::Unlimited => None,
            MaxRequests::OnePerHop => Some(Arc::new(TurnQueue::default()).connection()),
            MaxRequests::OneInAll(shared) => Some(shared.connection()),
        };
        let reads_for = self.writes.as_ref().map(|_| Arc::clone(client));
        let (writes, client) = (self.writes.clone(), Arc::clone(client));
        RequestQueue { _permits: Arc::clone(permits), requests, writes, reads_for, client }
    }
}

/// A client's permits, one for each layer that serves one connection at a time.
pub(super) struct ConnectionPermits(#[expect(dead_code, reason = "held, not used")] Vec<OwnedSemaphorePermit>);

impl ConnectionPermits {
    /// No permits, for hops that belong to no client ([`NextLayer::for_many`]).
    ///
    /// [`NextLayer::for_many`]: super::NextLayer::for_many
    pub fn none() -> ConnectionPermits {
        ConnectionPermits(Vec::new())
    }

    /// Takes the permits in the order of the gates, waiting for each.
    pub async fn take(gates: impl Iterator<Item = &ThreadModelGate>) -> ConnectionPermits {
        let mut permits = Vec::new();
        for connections in gates.filter_map(|gate| gate.connections.as_ref()) {
            // The semaphore is never closed, so this only waits.
            permits.extend(Arc::clone(connections).acquire_owned().await.ok());
        }
        ConnectionPermits(permits)
    }
}

/// Where the requests of one hop wait.
pub(super) struct RequestQueue {
    /// Held for the life of the hop.
    _permits: Arc<ConnectionPermits>,
    /// A turn for each request. None: all may run.
    pub requests: Option<Arc<ConnectionTurns>>,
    /// Counts the layer's writes. None for a filter.
    pub writes: Option<Arc<Writes>>,
    /// The client whose departure ends the layer's reads. None for a filter, and for a plugin that
    /// does not drop reads.
    pub reads_for: Option<Arc<Client>>,
    /// The client of the hop's connection.
    pub client: Arc<Client>,
}
