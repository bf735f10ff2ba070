//! The layer below a connection, and where the connection keeps it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, RwLock};

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Result, read_lock, write_lock};

use super::shared::FilterShared;

/// The layer below, as one call sees it.
///
/// Every call keeps the layer that it began with. When a layer was replaced and its last user drops
/// it, a task of its own finalizes and closes it.
pub(crate) struct Next {
    pub(crate) hop: Arc<Hop>,
    owner: Owner,
    /// Set when it was replaced: counts the task that ends it.
    retired: OnceLock<Arc<FilterShared>>,
}

/// What finalizes and closes the layer below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The connection that opened it.
    Connection,
    /// The filter, for all connections that share it.
    Filter,
}

impl Next {
    pub(crate) fn new(hop: Arc<Hop>) -> Arc<Next> {
        Arc::new(Next { hop, owner: Owner::Connection, retired: OnceLock::new() })
    }

    /// One that the filter's connections share ([`SharedNexts`](super::shared_next::SharedNexts)).
    pub(super) fn shared(hop: Arc<Hop>) -> Arc<Next> {
        Arc::new(Next { hop, owner: Owner::Filter, retired: OnceLock::new() })
    }

    /// Whether connections share it.
    pub(super) fn is_shared(&self) -> bool {
        self.owner == Owner::Filter
    }

    /// Finalizes it for the connection that ends. One that is shared goes on.
    pub(crate) async fn finalize(&self) -> Result<()> {
        if self.owner == Owner::Filter {
            return Ok(());
        }
        self.hop.finalize().await
    }

    /// Closes it for the connection that ends. One that is shared stays open.
    pub(crate) async fn close(&self) {
        if self.owner == Owner::Connection {
            self.hop.close().await;
        }
    }

    /// Finalizes and closes it. One that is shared stays open. `name` is the filter's, for
    /// messages.
    pub(crate) async fn end(&self, name: &str) {
        if self.owner == Owner::Connection {
            end(&self.hop, name).await;
        }
    }

    /// Finalizes and closes one that is shared.
    pub(super) async fn end_shared(&self, name: &str) {
        end(&self.hop, name).await;
    }

    /// Marks it as replaced: its last user, which may be the caller, ends it.
    pub(super) fn retire(&self, shared: &Arc<FilterShared>) {
        let _ = self.retired.set(Arc::clone(shared));
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if let Some(shared) = self.retired.get()
            && self.owner == Owner::Connection
        {
            end_later(shared, Arc::clone(&self.hop));
        }
    }
}

/// Finalizes and closes a hop on a task of its own, which the server waits for when it stops.
fn end_later(shared: &FilterShared, hop: Arc<Hop>) {
    let name = shared.name.clone();
    shared.detached_tasks.spawn(async move { end(&hop, &name).await });
}

async fn end(hop: &Hop, name: &str) {
    if let Err(error) = hop.finalize().await {
        tracing::error!("{name}: finalizing {}: {error}", hop.name());
    }
    hop.close().await;
}

/// Where a connection keeps the layer below.
pub(super) struct NextCell {
    now: Found,
    generation: AtomicU64,
    /// Held while the layer is reopened, so that only one call reopens it at a time.
    pub(crate) reopening: tokio::sync::Mutex<()>,
}

enum Found {
    /// For filters that cannot reopen it, which is nearly all of them. A request gets it without a
    /// lock and without a reference count. It stays until the connection is dropped, but counts as
    /// absent once it is closed.
    Lasting {
        next: OnceLock<Arc<Next>>,
        closed: AtomicBool,
    },
    Replaceable(RwLock<Option<Arc<Next>>>),
}

impl NextCell {
    /// For a layer that stays the same while the connection is open.
    pub(super) fn lasting() -> NextCell {
        NextCell::new(Found::Lasting { next: OnceLock::new(), closed: AtomicBool::new(false) })
    }

    /// For a layer that may be replaced while the connection is open.
    pub(crate) fn replaceable() -> NextCell {
        NextCell::new(Found::Replaceable(RwLock::default()))
    }

    fn new(now: Found) -> NextCell {
        NextCell { now, generation: AtomicU64::new(0), reopening: tokio::sync::Mutex::default() }
    }

    pub(super) fn is_replaceable(&self) -> bool {
        matches!(self.now, Found::Replaceable(_))
    }

    /// The layer below, if it cannot be replaced.
    pub(super) fn get_lasting(&self) -> Option<&Arc<Next>> {
        match &self.now {
            Found::Lasting { next, closed } => next.get().filter(|_| !closed.load(Relaxed)),
            Found::Replaceable(_) => None,
        }
    }

    /// The layer below, if it can be replaced.
    pub(super) fn get_replaceable(&self) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { .. } => None,
            Found::Replaceable(now) => read_lock(now).clone(),
        }
    }

    /// The layer below, if it is open.
    pub(crate) fn get(&self) -> Option<Arc<Next>> {
        self.get_lasting().cloned().or_else(|| self.get_replaceable())
    }

    /// Stores a layer that was opened. Returns the layer that it replaces.
    pub(crate) fn put(&self, next: Arc<Next>) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { next: cell, .. } => cell.set(next).err(),
            Found::Replaceable(now) => write_lock(now).replace(next),
        }
    }

    /// Takes the layer out, to close it.
    pub(crate) fn take(&self) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { next, closed } => next.get().filter(|_| !closed.swap(true, Relaxed)).cloned(),
            Found::Replaceable(now) => write_lock(now).take(),
        }
    }

    /// How often the layer was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Counts a replacement.
    pub(super) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
    }
}
