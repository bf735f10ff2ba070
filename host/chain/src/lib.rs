//! The ordered layers between the server and the source of the data.
//!
//! The filters come in the order of the command line, the first nearest the client, then the
//! plugin. A layer only knows the layer below it, as a [`NextLayer`]. It opens that layer under a
//! name of its choice, or not at all, and gets a [`Hop`]: the one gate through which every request
//! to that layer passes. The gate checks range, flags and read-only. It emulates what the layer
//! cannot do (zero by pwrite, FUA by flush, cache by pread) and queues requests if the layer's
//! thread model asks for it. So neither filters nor plugins repeat these checks, and no layer has
//! to trust another.
//!
//! Invariants:
//! * A layer is only called through its hop.
//! * A hop asks for size and capabilities once, when it is opened, and checks them. It asks for
//!   block sizes once at most, when something needs them. If a layer's answer would change later,
//!   the first answer stays in force until the layer is opened again.
//! * A layer is asked once a connection what the empty export name stands for.
//! * A thread model affects only its own layer: the queue is in that layer's hop, and requests to
//!   other layers do not wait for it.
//! * An operation is polled to its end, even if its client is gone. However it ends, it then gives
//!   back buffers, permits and locks.
#![forbid(unsafe_code)]

mod accounts;
mod disk;
mod emulate;
mod exports;
mod hop;
mod long;
mod needed;
mod thread_model;
mod turns;
mod writes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, Errno, ExportEntry, Handle, OpenArgs, Plugin, Pool, Result,
    StopScope, ThreadModel, Usage,
};
use tokio::time::{Instant, sleep, timeout_at};

pub use emulate::STEP;
pub use exports::{MAX_LIST, list_bytes};
pub use hop::Hop;
pub use needed::{Need, is_needed, need, poll_for, poll_until_done};
pub use writes::{WriteWatch, Writes};

use disk::{DiskLookup, ExportName, LayerExports};
use exports::DefaultNames;
use needed::not_long_without;
use thread_model::{ConnectionPermits, RequestLimit, ThreadModelGate};

/// The most filters of a chain. Where no guest runs in between, the frames of all layers lie on one
/// stack: closing a connection takes some 8 KiB for each of them, which makes 1 MiB, and a thread
/// has 2 MiB.
pub const MAX_FILTERS: usize = 128;

/// A filter as the chain sees it. Its handles follow the same rules as a plugin's.
pub trait Layer: Send + Sync + 'static {
    /// The filter's name, for messages.
    fn name(&self) -> &str;

    /// How many calls may run at once. The layer itself enforces this with the number of its
    /// instances; the hop adds no queue. The chain enforces only
    /// [`ThreadModel::SerializeConnections`]: it opens one connection at a time.
    fn thread_model(&self) -> ThreadModel;

    /// Directories whose files the layer may open and read from now on.
    fn reads(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Directories from which the layer removes files when the server ends.
    fn removes(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The server is about to listen. `below` is the strictest thread model of the layers below.
    fn get_ready(&self, below: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        let _ = below;
        Box::pin(async { Ok(()) })
    }

    /// Called in the process that serves, after the fork.
    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(async { Ok(()) })
    }

    /// A client has connected; an error disconnects it. By default next decides.
    fn preconnect(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { next.preconnect(readonly).await })
    }

    /// The exports that a client may list. By default next's.
    fn list_exports(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move { next.list_exports(readonly).await })
    }

    /// What the empty export name stands for. By default next decides.
    fn default_export(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move { next.default_export(readonly).await })
    }

    /// Opens this layer for a connection. The handle finalizes and closes the hops that it opened
    /// through `next`.
    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>>;

    /// What the layer uses of its own limits.
    fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }

    /// What it uses, with other layers, of limits that it shares with them.
    fn shared_usage(&self) -> Vec<Usage> {
        Vec::new()
    }

    /// Frees what the layer keeps for reuse and was not needed since the last call. Called
    /// periodically, on a thread that may block.
    fn free_spare(&self) {}

    /// The server stops: whatever only waits ends now. Called from any thread; it does not block.
    fn stop(&self) {}

    /// The server ends, and all connections are closed. The future is dropped at `deadline`.
    fn cleanup(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        let _ = deadline;
        Box::pin(async {})
    }
}

/// How long the end of the server waits for operations whose clients have gone. Then the plugin
/// ends those that only read.
const DETACHED_GRACE: Duration = Duration::from_millis(500);

/// The least time that the plugin's cleanup gets.
const MIN_CLEANUP: Duration = Duration::from_millis(500);

/// All layers, for the life of the server.
pub struct Chain {
    layers: Vec<LayerSlot>,
    plugin_name: String,
    plugin: Box<dyn Plugin>,
    plugin_gate: ThreadModelGate,
    writes: Arc<Writes>,
    /// What else the filters read.
    disks: Vec<ExtraDisk>,
    /// The strictest thread model of all layers.
    thread_model: ThreadModel,
    pool: Pool,
}

/// A chain that a filter of another chain reads beside its next: the operator gave the disk in one
/// of the filter's parameters. It starts and ends with the chain that has it.
pub struct ExtraDisk {
    /// The filter and the parameter, for the names of accounts: `qcow2:qcow2-backing`.
    pub name: String,
    /// The disk's own layers.
    pub chain: Arc<Chain>,
}

/// A filter, and what its hops share.
struct LayerSlot {
    layer: Arc<dyn Layer>,
    gate: ThreadModelGate,
}

impl Chain {
    /// Puts filters, nearest the client first, in front of a plugin that is configured and ready.
    pub fn new(layers: Vec<Arc<dyn Layer>>, plugin_name: &str, plugin: Box<dyn Plugin>, pool: Pool) -> Arc<Chain> {
        Chain::with_disks(layers, plugin_name, plugin, pool, Vec::new())
    }

    /// [`Chain::new`] with the disks that its filters read beside next. The order of start and end
    /// is that of layers: a disk is ready before the filters are, and ends after them. All chains
    /// of a server have the same pool.
    pub fn with_disks(
        layers: Vec<Arc<dyn Layer>>,
        plugin_name: &str,
        plugin: Box<dyn Plugin>,
        pool: Pool,
        disks: Vec<ExtraDisk>,
    ) -> Arc<Chain> {
        let writes = Arc::<Writes>::default();
        let plugin_gate = ThreadModelGate::new(plugin.thread_model(), RequestLimit::ByHop, Some(Arc::clone(&writes)));
        let models = layers.iter().map(|layer| layer.thread_model());
        let thread_model = models.fold(plugin.thread_model(), ThreadModel::min);
        let layers = layers
            .into_iter()
            .map(|layer| {
                let gate = ThreadModelGate::new(layer.thread_model(), RequestLimit::ByLayer, None);
                LayerSlot { layer, gate }
            })
            .collect();
        let plugin_name = plugin_name.to_string();
        Arc::new(Chain { layers, plugin_name, plugin, plugin_gate, writes, disks, thread_model, pool })
    }

    /// The strictest thread model of the layers from `index` down.
    fn thread_model_from(&self, index: usize) -> ThreadModel {
        let filters = self.layers.iter().skip(index).map(|slot| slot.layer.thread_model());
        filters.fold(self.plugin.thread_model(), ThreadModel::min)
    }

    /// Takes a client's permits for the layers that serve one connection at a time, top down.
    async fn take_permits(&self) -> Arc<ConnectionPermits> {
        let gates = self.layers.iter().map(|slot| &slot.gate).chain(std::iter::once(&self.plugin_gate));
        Arc::new(ConnectionPermits::take(gates).await)
    }

    /// The pool of buffers.
    #[inline]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Prepares the filters, nearest the plugin first. Those of its disks come before.
    pub async fn get_ready(&self) -> Result<(), ConfigError> {
        for disk in &self.disks {
            Box::pin(disk.chain.get_ready()).await?;
        }
        for (index, slot) in self.layers.iter().enumerate().rev() {
            slot.layer.get_ready(self.thread_model_from(index + 1)).await?;
        }
        Ok(())
    }

    /// What the plugin and the filters will access from now on. None: the plugin does not declare
    /// it. Before that, the plugin prepares for confinement.
    ///
    /// # Errors
    /// Why the plugin could not prepare.
    pub fn reach(&self) -> std::io::Result<Option<AccessRights>> {
        self.plugin.before_confinement()?;
        let filters = self.layers.iter().flat_map(|slot| slot.layer.reads());
        let mut reach = self.plugin.access_rights().map(|mut reach| {
            reach.read.extend(filters);
            reach.remove.extend(self.layers.iter().flat_map(|slot| slot.layer.removes()));
            reach
        });
        for disk in &self.disks {
            // Each of them is asked, because its plugin prepares.
            let of_disk = disk.chain.reach()?;
            reach = reach.zip(of_disk).map(|(reach, of_disk)| reach.and(of_disk));
        }
        Ok(reach)
    }

    /// Called in the process that serves, after the fork. Nearest the plugin first.
    pub async fn after_fork(&self) -> Result<(), ConfigError> {
        for disk in &self.disks {
            Box::pin(disk.chain.after_fork()).await?;
        }
        self.plugin.begin_serving().await?;
        for slot in self.layers.iter().rev() {
            slot.layer.after_fork().await?;
        }
        Ok(())
    }

    /// What the filters use of their limits. The account of a filter has its name before it, as
    /// options have it: `cow:maps`, and `cow#2:maps` for the second filter of the name. Those of a
    /// disk's filters have the disk's name before that: `qcow2:qcow2-backing/cow:maps`.
    pub fn usage(&self) -> Vec<Usage> {
        let layers = self.layers.iter().map(|slot| (slot.layer.name(), slot.layer.usage()));
        let disks = self.disks.iter().map(|disk| (disk.name.as_str(), disk.chain.usage()));
        let shared = self.layers.iter().flat_map(|slot| slot.layer.shared_usage());
        accounts::named(layers.collect(), disks.collect(), shared)
    }

    /// Frees what is kept for reuse and was not needed since the last call.
    pub fn free_spare(&self) {
        self.free_spare_of_layers();
        self.pool.free_spare();
    }

    fn free_spare_of_layers(&self) {
        self.layers.iter().for_each(|slot| slot.layer.free_spare());
        self.disks.iter().for_each(|disk| disk.chain.free_spare_of_layers());
    }

    /// The server begins to stop: guests no longer wait. Called from any thread.
    pub fn begin_stop(&self) {
        self.writes.begin_stop();
        for slot in &self.layers {
            slot.layer.stop();
        }
        self.disks.iter().for_each(|disk| disk.chain.begin_stop());
    }

    /// The plugin, and those of its disks, end operations that have not ended in time
    /// ([`Plugin::stop`]). Called from any thread.
    pub fn abandon(&self, scope: StopScope) {
        self.plugin.stop(scope);
        self.disks.iter().for_each(|disk| disk.chain.abandon(scope));
    }

    /// The plugin's writes that are under way.
    pub fn writes(&self) -> &Arc<Writes> {
        &self.writes
    }

    /// Called after the last connection is closed. It waits for all layers together until
    /// `deadline`, and says so if that is too short.
    pub async fn cleanup(self: &Arc<Self>, deadline: Instant) {
        let layers = async {
            for slot in &self.layers {
                if timeout_at(deadline, slot.layer.cleanup(deadline)).await.is_err() {
                    tracing::error!("{}: cleanup does not end: it is given up", slot.layer.name());
                }
            }
        };
        let late = async {
            sleep(DETACHED_GRACE).await;
            // Filters wait for operations whose clients have gone.
            self.abandon(StopScope::Reads);
            std::future::pending().await
        };
        tokio::select! {
            () = layers => {}
            () = late => {}
        }
        // Nothing reads the disks any more. They end while the plugin does.
        let disks = self.disks.iter().map(|disk| tokio::spawn(cleanup_of(Arc::clone(&disk.chain), deadline)));
        let disks: Vec<_> = disks.collect();
        let chain = Arc::clone(self);
        let plugin = tokio::task::spawn_blocking(move || chain.plugin.cleanup());
        // A plugin has a moment even if the filters took all of the time.
        let deadline = deadline.max(Instant::now() + MIN_CLEANUP);
        if timeout_at(deadline, plugin).await.is_err() {
            tracing::error!("{}: cleanup does not end: it is given up", self.plugin_name);
            self.plugin.stop(StopScope::Everything);
        }
        for disk in disks {
            // A panic of a plugin is in the log.
            let _ = disk.await;
        }
    }

    /// The whole chain, for one client.
    pub fn top(self: &Arc<Self>, client: Arc<Client>) -> NextLayer {
        let defaults = DefaultNames::new(self.layers.len() + 1);
        NextLayer { chain: Arc::clone(self), index: 0, client, defaults, permits: None }
    }
}

/// [`Chain::cleanup`] of a disk, which may have disks itself: a future cannot be a part of itself.
fn cleanup_of(chain: Arc<Chain>, deadline: Instant) -> BoxFuture<'static, ()> {
    Box::pin(async move { chain.cleanup(deadline).await })
}

/// The next layer, with those below it, for one client. Nothing of it is open yet: see
/// [`NextLayer::open`].
#[derive(Clone)]
pub struct NextLayer {
    chain: Arc<Chain>,
    index: usize,
    client: Arc<Client>,
    defaults: DefaultNames,
    /// None until the first layer is opened.
    permits: Option<Arc<ConnectionPermits>>,
}

impl NextLayer {
    fn next(&self) -> Option<(&LayerSlot, NextLayer)> {
        let slot = self.chain.layers.get(self.index)?;
        let next = NextLayer { index: self.index + 1, ..self.clone() };
        Some((slot, next))
    }

    /// The client of this connection.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The same layers for a client that stands for many ([`Client::for_many`]). What is opened
    /// takes no permits: the clients that it serves have taken theirs. The caller makes sure that
    /// layers which serve one connection at a time ([`NextLayer::thread_model`]) are opened once at
    /// a time.
    #[must_use]
    pub fn for_many(&self, client: Arc<Client>) -> NextLayer {
        let defaults = DefaultNames::new(self.chain.layers.len() + 1);
        NextLayer { client, defaults, permits: Some(Arc::new(ConnectionPermits::none())), ..self.clone() }
    }

    /// The pool of buffers.
    #[inline]
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
            Some((slot, next)) => slot.layer.preconnect(readonly, next).await,
            None => self.chain.plugin.preconnect(&self.client, readonly).await,
        }
    }

    /// The name of the next layer, for messages.
    fn name(&self) -> &str {
        self.chain.layers.get(self.index).map_or(&self.chain.plugin_name, |slot| slot.layer.name())
    }

    /// The exports that a client may list. The list is checked.
    ///
    /// # Errors
    /// The layer's own, or EIO for a list that the protocol cannot carry or that is too long.
    pub async fn list_exports(&self, readonly: bool) -> Result<Vec<ExportEntry>> {
        let list = match self.next() {
            Some((slot, next)) => Some(slot.layer.list_exports(readonly, next).await?),
            None => {
                let list = self.chain.plugin.list_exports(&self.client, readonly);
                not_long_without(&self.client, list).await?
            }
        };
        match list {
            Some(list) => exports::checked(self.name(), list),
            // A plugin whose default export cannot be told has none to list, as in nbdkit.
            None => match self.default_export(readonly).await {
                Ok(name) => Ok(vec![ExportEntry { name, description: None }]),
                Err(error) => {
                    tracing::error!("{}: default_export: {error}; no export is listed", self.name());
                    Ok(Vec::new())
                }
            },
        }
    }

    /// What the empty export name stands for. The layer is asked once for each connection. After an
    /// error it is asked again.
    ///
    /// # Errors
    /// The layer's own, or EIO for a name that the protocol cannot carry.
    pub async fn default_export(&self, readonly: bool) -> Result<String> {
        let ask = async {
            let name = match self.next() {
                Some((slot, next)) => slot.layer.default_export(readonly, next).await?,
                None => self.chain.plugin.default_export(&self.client, readonly).await?,
            };
            exports::check_default(self.name(), &name)?;
            Ok(name)
        };
        self.defaults.get(self.index, ask).await
    }

    /// Opens the next layer. The empty name is replaced by the default export's.
    ///
    /// # Errors
    /// The layer's own, or EIO if the layer gives a size beyond 2^63 - 1. ESHUTDOWN if the client
    /// leaves while it waits for its turn at a layer.
    pub async fn open(&self, readonly: bool, exportname: &str) -> Result<Arc<Hop>> {
        let name = ExportName::asked(self, readonly, exportname).await?;
        let args = OpenArgs { readonly, exportname: name.text().to_string(), client: Arc::clone(&self.client) };
        let permits = match &self.permits {
            Some(permits) => Arc::clone(permits),
            None => tokio::select! {
                permits = self.chain.take_permits() => permits,
                () = self.client.until_gone() => return Err(Errno::Eshutdown.into()),
            },
        };
        let disk = DiskLookup::new(self.clone(), readonly, name);
        let (name, queue, handle) = match self.next() {
            Some((slot, next)) => {
                let queue = slot.gate.request_queue(&permits, &self.client);
                let next = NextLayer { permits: Some(permits), ..next };
                (slot.layer.name().to_string(), queue, slot.layer.open(args, next).await?)
            }
            None => {
                let queue = self.chain.plugin_gate.request_queue(&permits, &self.client);
                let open = self.chain.plugin.open(args);
                (self.chain.plugin_name.clone(), queue, not_long_without(&self.client, open).await?)
            }
        };
        let shared = (self.chain.pool.clone(), self.client.id);
        Hop::open(name, handle, queue, disk, self.chain.thread_model, shared).await
    }
}

impl LayerExports for NextLayer {
    fn default_name(&self, readonly: bool) -> BoxFuture<'_, Result<String>> {
        Box::pin(self.default_export(readonly))
    }

    fn list(&self, readonly: bool) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(self.list_exports(readonly))
    }
}

#[cfg(test)]
mod tests;
