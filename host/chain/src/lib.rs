//! The ordered layers between the server and the source of the data.
//!
//! Filters in the order of the command line, the first nearest the client, then the plugin. Each layer knows only [`Below`]: it opens
//! the next layer through it, under the name it likes, or not at all, and gets a [`Hop`]: the one gate through which
//! every request to that layer passes. The gate checks range, flags, read-only and alignment, substitutes what the layer cannot do
//! (zero by pwrite, FUA by flush, cache by pread) and queues requests if the layer's thread model asks for it, so that neither a
//! filter nor a plugin has to, and nobody above has to trust either.
//!
//! Invariants:
//! * A layer is only ever called through its hop.
//! * A hop's size, block sizes and capabilities are asked once, when it is opened, and checked; a layer that changes its mind is
//!   held to its first answer until it is opened anew.
//! * A thread model binds its own layer: the queue sits in that layer's hop, requests to other layers do not wait for it.
//! * An operation is polled to its end, also when its client has gone: buffers, queue places and locks are given back by the end
//!   of the operation, in whatever way it ends.

mod emulate;
mod hop;

use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_plugin_api::{
    BoxFuture, Client, ConfigError, ExportEntry, Handle, OpenArgs, Plugin, Pool, Reach, Result, ThreadModel,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use emulate::STEP;
pub use hop::Hop;
use hop::Queue;

/// A filter as the chain sees it. Its handles obey the same rules as a plugin's.
pub trait Layer: Send + Sync + 'static {
    /// For messages.
    fn name(&self) -> &str;

    /// How many calls may run at once. The layer keeps to it itself (it knows how many instances it has): the hop adds
    /// no queue. Only [`ThreadModel::SerializeConnections`] is kept by the chain, which opens one connection at a time.
    fn thread_model(&self) -> ThreadModel;

    /// Directories whose files it reads from now on, besides what it has open.
    fn reads(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The server is about to listen. `below` is the strictest thread model of the layers below.
    fn get_ready(&self, below: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        let _ = below;
        Box::pin(async { Ok(()) })
    }

    /// In the process that serves.
    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(async { Ok(()) })
    }

    /// A client has connected; an error drops it. By default next decides.
    fn preconnect(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { next.preconnect(readonly).await })
    }

    /// The exports to be shown. By default next's.
    fn list_exports(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move { next.list_exports(readonly).await })
    }

    /// What the empty export name stands for. By default what it stands for below.
    fn default_export(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move { next.default_export(readonly).await })
    }

    /// Opens this layer for a connection. The handle finalizes and closes the hops it opened through `next`.
    fn open(&self, args: OpenArgs, next: Below) -> BoxFuture<'_, Result<Arc<dyn Handle>>>;

    /// Frees what it keeps and nobody has needed since this was last called. Called now and then, on a thread that may wait.
    fn free_spare(&self) {}

    /// The server ends; all connections are closed.
    fn cleanup(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// All layers, for the life of the server.
pub struct Chain {
    layers: Vec<Floor>,
    plugin_name: String,
    plugin: Box<dyn Plugin>,
    plugin_gate: Gatekeeper,
    pool: Pool,
}

/// A filter and what its hops share.
struct Floor {
    layer: Arc<dyn Layer>,
    gate: Gatekeeper,
}

/// What a layer's thread model makes its hops share.
struct Gatekeeper {
    connections: Option<Arc<Semaphore>>,
    requests: Requests,
}

enum Requests {
    Parallel,
    OneAConnection,
    OneInAll(Arc<Semaphore>),
}

impl Gatekeeper {
    fn new(model: ThreadModel, keeps_requests_itself: bool) -> Gatekeeper {
        let connections = (model == ThreadModel::SerializeConnections).then(|| Arc::new(Semaphore::new(1)));
        let requests = match model {
            _ if keeps_requests_itself => Requests::Parallel,
            ThreadModel::Parallel => Requests::Parallel,
            ThreadModel::SerializeRequests | ThreadModel::SerializeConnections => Requests::OneAConnection,
            ThreadModel::SerializeAllRequests => Requests::OneInAll(Arc::new(Semaphore::new(1))),
        };
        Gatekeeper { connections, requests }
    }

    /// Where the requests of one hop wait.
    fn queue(&self, places: &Arc<Places>) -> Queue {
        let requests = match &self.requests {
            Requests::Parallel => None,
            Requests::OneAConnection => Some(Arc::new(Semaphore::new(1))),
            Requests::OneInAll(shared) => Some(Arc::clone(shared)),
        };
        Queue::new(Arc::clone(places), requests)
    }
}

/// A client's place in each layer that serves one connection at a time. Given back when the last of its hops is gone.
///
/// All of them are taken before the first layer is opened, from the top down: a layer that waited for its place while the ones above were
/// being opened would make those hold what the connection before it needs to end (the one instance of a filter). And they are the
/// client's, not a hop's, so that a filter can open the layer below anew before it lets the old one go.
pub(crate) struct Places(#[expect(dead_code, reason = "held, not used")] Vec<OwnedSemaphorePermit>);

impl Chain {
    /// Puts filters (nearest the client first) in front of a plugin that is configured and ready.
    pub fn new(layers: Vec<Arc<dyn Layer>>, plugin_name: &str, plugin: Box<dyn Plugin>, pool: Pool) -> Arc<Chain> {
        let plugin_gate = Gatekeeper::new(plugin.thread_model(), false);
        let layers = layers
            .into_iter()
            .map(|layer| {
                let gate = Gatekeeper::new(layer.thread_model(), true);
                Floor { layer, gate }
            })
            .collect();
        Arc::new(Chain { layers, plugin_name: plugin_name.to_string(), plugin, plugin_gate, pool })
    }

    /// The strictest thread model of the layers from `index` down.
    fn thread_model_from(&self, index: usize) -> ThreadModel {
        let filters = self.layers.iter().skip(index).map(|floor| floor.layer.thread_model());
        filters.fold(self.plugin.thread_model(), ThreadModel::min)
    }

    /// Takes a client's place in each layer that serves one connection at a time.
    async fn admit(&self) -> Arc<Places> {
        let gates = self.layers.iter().map(|floor| &floor.gate).chain(std::iter::once(&self.plugin_gate));
        let mut places = Vec::new();
        for connections in gates.filter_map(|gate| gate.connections.as_ref()) {
            // The semaphore is never closed, so this only waits.
            places.extend(Arc::clone(connections).acquire_owned().await.ok());
        }
        Arc::new(Places(places))
    }

    /// Where buffers come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Prepares the filters, nearest the plugin first.
    pub async fn get_ready(&self) -> Result<(), ConfigError> {
        for (index, floor) in self.layers.iter().enumerate().rev() {
            floor.layer.get_ready(self.thread_model_from(index + 1)).await?;
        }
        Ok(())
    }

    /// What the plugin and the filters reach from now on, if the plugin says so. It has arranged for what it will not be able to do itself.
    ///
    /// # Errors
    /// What is in the way of that.
    pub fn reach(&self) -> std::io::Result<Option<Reach>> {
        self.plugin.arrange()?;
        let filters = self.layers.iter().flat_map(|floor| floor.layer.reads());
        Ok(self.plugin.reach().map(|mut reach| {
            reach.read.extend(filters);
            reach
        }))
    }

    /// In the process that serves, nearest the plugin first.
    pub async fn after_fork(&self) -> Result<(), ConfigError> {
        for floor in self.layers.iter().rev() {
            floor.layer.after_fork().await?;
        }
        Ok(())
    }

    /// Frees what is kept for the next requests and nobody has needed since this was last called.
    pub fn free_spare(&self) {
        for floor in &self.layers {
            floor.layer.free_spare();
        }
        self.pool.free_spare();
    }

    /// After the last connection is closed.
    pub async fn cleanup(&self) {
        for floor in &self.layers {
            floor.layer.cleanup().await;
        }
        self.plugin.cleanup();
    }

    /// The whole chain, for one client.
    pub fn top(self: &Arc<Self>, client: Arc<Client>) -> Below {
        Below { chain: Arc::clone(self), index: 0, client, places: None }
    }
}

/// The layers below one layer, for one client.
#[derive(Clone)]
pub struct Below {
    chain: Arc<Chain>,
    index: usize,
    client: Arc<Client>,
    /// None until the layer above it is opened.
    places: Option<Arc<Places>>,
}

impl Below {
    fn next(&self) -> Option<(&Floor, Below)> {
        let floor = self.chain.layers.get(self.index)?;
        let next = Below { index: self.index + 1, ..self.clone() };
        Some((floor, next))
    }

    /// Whose connection it is.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Where buffers come from.
    pub fn pool(&self) -> &Pool {
        &self.chain.pool
    }

    /// The strictest thread model of these layers.
    pub fn thread_model(&self) -> ThreadModel {
        self.chain.thread_model_from(self.index)
    }

    /// A client has connected.
    pub async fn preconnect(&self, readonly: bool) -> Result<()> {
        match self.next() {
            Some((floor, next)) => floor.layer.preconnect(readonly, next).await,
            None => self.chain.plugin.preconnect(readonly).await,
        }
    }

    /// The exports to be shown.
    pub async fn list_exports(&self, readonly: bool) -> Result<Vec<ExportEntry>> {
        match self.next() {
            Some((floor, next)) => floor.layer.list_exports(readonly, next).await,
            None => self.chain.plugin.list_exports(readonly, self.client.tls).await,
        }
    }

    /// What the empty export name stands for.
    pub async fn default_export(&self, readonly: bool) -> Result<String> {
        match self.next() {
            Some((floor, next)) => floor.layer.default_export(readonly, next).await,
            None => self.chain.plugin.default_export(readonly, self.client.tls).await,
        }
    }

    /// Opens the next layer. The empty name is replaced by the default export's.
    ///
    /// # Errors
    /// The layer's own, or EIO if it describes itself in a way that cannot be (a size beyond 2^63 - 1, impossible block sizes).
    pub async fn open(&self, readonly: bool, exportname: &str) -> Result<Arc<Hop>> {
        let exportname = match exportname {
            "" => self.default_export(readonly).await?,
            name => name.to_string(),
        };
        let args = OpenArgs { readonly, exportname, client: Arc::clone(&self.client) };
        let places = match &self.places {
            Some(places) => Arc::clone(places),
            None => self.chain.admit().await,
        };
        let (name, queue, handle) = match self.next() {
            Some((floor, next)) => {
                let queue = floor.gate.queue(&places);
                let next = Below { places: Some(places), ..next };
                (floor.layer.name().to_string(), queue, floor.layer.open(args, next).await?)
            }
            None => {
                let queue = self.chain.plugin_gate.queue(&places);
                (self.chain.plugin_name.clone(), queue, self.chain.plugin.open(args).await?)
            }
        };
        Hop::open(name, handle, queue, readonly, self.chain.pool.clone()).await
    }
}

#[cfg(test)]
mod tests;
