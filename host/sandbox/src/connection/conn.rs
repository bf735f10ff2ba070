//! A connection in one layer: what is below it, what its client asked for, and the state that it
//! uses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use rbdkit_chain::{Hop, NextLayer};
use rbdkit_plugin_api::{BlockSizes, BoxFuture, Capabilities, Client, DiskId, Errno, Error, OpenArgs, Result, lock};

use super::alarms::ConnectionAlarms;
use super::arrivals::Announced;
use super::bindings::host::types as wit;
use super::counters::Counted;
use super::disks::GivenDisks;
use super::next::{Next, NextCell};
use super::prefetch::Prefetcher;
use super::shared::FilterShared;
use super::siblings::{Sibling, Siblings, wait_for_all};
use super::tracker::{TaskToken, TaskTracker};
use crate::state::{ConnectionDeltas, ExportScope, ScopeState};

/// About how many bytes a flush of another connection takes while it is under way.
const FLUSH_BYTES: u64 = 512;

/// A connection in one layer.
pub(crate) struct Connection {
    pub(crate) shared: Arc<FilterShared>,
    pub(crate) below: NextLayer,
    pub(crate) exportname: String,
    pub(crate) readonly: bool,
    /// What the guest's open returned.
    pub(crate) handle: AtomicU64,
    pub(crate) deltas: ConnectionDeltas,
    pub(crate) prefetcher: Arc<Prefetcher>,
    /// Operations below that continue after their call has ended.
    pub(crate) detached_operations: Arc<TaskTracker>,
    next: NextCell,
    needs_its_instance: bool,
    /// Open has succeeded and close has not begun. A fresh instance that replaces a lost one
    /// replays such connections.
    live: AtomicBool,
    /// The instance that held its state was dropped, and the state cannot be rebuilt.
    lost: AtomicBool,
    own: OnceLock<Arc<ScopeState>>,
    /// The state of the disk below, known once next is open.
    export: OnceLock<ExportScope>,
    keeps_state: bool,
    pub(crate) told: Mutex<Told>,
    siblings: Arc<Siblings>,
    flushes_others: bool,
    /// The filter may hold the requests before this layer.
    pub(crate) has_gate: bool,
    /// Set when finalize begins: from then on no other connection flushes its next.
    finalizing: Mutex<bool>,
    pub(crate) alarms: ConnectionAlarms,
    _counted: Counted,
    /// Set if the filter exports `on-connection`. Dropped after the connection was uncounted.
    announced: OnceLock<Announced>,
}

/// What the guest told of the export. The client knows it, so it holds for as long as the
/// connection does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) size: Option<u64>,
    pub(crate) block_sizes: Option<Option<BlockSizes>>,
    pub(crate) can: Option<Capabilities>,
}

/// How a filter treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionTraits {
    /// The filter may replace the layer below.
    pub(crate) reopens: bool,
    /// The connection's state is in the one instance that serves it, and would be lost with it.
    pub(crate) needs_its_instance: bool,
    /// The filter imports functions on the state of scopes.
    pub(crate) keeps_state: bool,
    /// The filter may flush the layers below of all its connections.
    pub(crate) flushes_others: bool,
    /// The filter may hold the requests before its layer.
    pub(crate) has_gate: bool,
}

impl Sibling for Connection {
    fn disk(&self) -> Result<Arc<ScopeState>> {
        self.export().cloned()
    }

    fn begin_flush(&self, shared: &mut Vec<Arc<Next>>) -> Option<BoxFuture<'static, Result<()>>> {
        let operation = {
            let finalizing = lock(&self.finalizing);
            if *finalizing || !self.is_live() {
                return None;
            }
            self.detached_operations.begin()
        };
        let next = self.next()?;
        if next.is_shared() {
            if shared.iter().any(|known| Arc::ptr_eq(known, &next)) {
                return None;
            }
            shared.push(Arc::clone(&next));
        }
        let flushes = next.hop.has_written() && next.hop.can().flush;
        flushes.then(|| {
            let flush = async move {
                let answer = next.hop.flush().await;
                drop((next, operation));
                answer
            };
            Box::pin(flush) as BoxFuture<'static, Result<()>>
        })
    }
}

impl Connection {
    /// A connection whose layer below is not open yet.
    pub(crate) fn new(
        shared: &Arc<FilterShared>,
        args: OpenArgs,
        below: NextLayer,
        siblings: &Arc<Siblings>,
        traits: ConnectionTraits,
    ) -> Arc<Connection> {
        Arc::new(Connection {
            siblings: Arc::clone(siblings),
            flushes_others: traits.flushes_others,
            has_gate: traits.has_gate,
            finalizing: Mutex::default(),
            export: OnceLock::new(),
            keeps_state: traits.keeps_state,
            prefetcher: Prefetcher::new(shared, below.thread_model()),
            told: Mutex::default(),
            alarms: ConnectionAlarms::default(),
            _counted: Counted::new(&shared.connections),
            announced: OnceLock::new(),
            shared: Arc::clone(shared),
            below,
            exportname: args.exportname,
            readonly: args.readonly,
            handle: AtomicU64::new(0),
            deltas: ConnectionDeltas::default(),
            detached_operations: Arc::default(),
            next: if traits.reopens { NextCell::replaceable() } else { NextCell::lasting() },
            needs_its_instance: traits.needs_its_instance,
            live: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            own: OnceLock::new(),
        })
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        self.below.client()
    }

    pub(crate) fn id(&self) -> u64 {
        self.client().id
    }

    /// Whether its state is in the one instance that serves it, and would be lost with it.
    pub(crate) fn needs_its_instance(&self) -> bool {
        self.needs_its_instance
    }

    /// Whether it is open: open has succeeded and close has not begun.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Open has succeeded.
    pub(crate) fn begin_life(self: &Arc<Self>) {
        self.live.store(true, Relaxed);
        self.alarms.begin();
        if self.flushes_others {
            let this: Arc<dyn Sibling> = Arc::<Connection>::clone(self);
            self.siblings.add(Arc::downgrade(&this));
        }
    }

    /// Finalize begins. What other connections flush here is counted by then, and no alarm sounds
    /// any more.
    pub(crate) fn begin_finalize(&self) {
        *lock(&self.finalizing) = true;
        self.alarms.end();
    }

    /// `next.flush-all`, without the flush of this connection's next, and the bytes that it keeps.
    ///
    /// # Errors
    /// Those of a scope.
    pub(crate) fn flush_others(&self, scope: wit::Scope) -> Result<(u64, BoxFuture<'static, Result<()>>)> {
        let disk = match scope {
            wit::Scope::Connection => return Ok((0, Box::pin(async { Ok(()) }))),
            wit::Scope::Exportname => Some(self.export()?),
            wit::Scope::Server => None,
        };
        let flushes = self.siblings.begin_flushes(std::ptr::from_ref(self).cast(), self.next(), disk);
        Ok((flushes.len() as u64 * FLUSH_BYTES, Box::pin(wait_for_all(flushes))))
    }

    /// Tells a filter that exports `on-connection` that it is open and, when it is dropped, that it
    /// is gone.
    pub(crate) fn announce(&self) {
        self.announced.get_or_init(|| Announced::new(&self.shared.arrivals, self.id()));
    }

    /// As [`Connection::announce`], for a connection that could not be opened: only its end is
    /// told.
    pub(crate) fn announce_end(&self) {
        self.announced.get_or_init(|| Announced::failed(&self.shared.arrivals, self.id()));
    }

    /// An alarm is called until the token is dropped.
    pub(crate) fn run_alarm(&self) -> TaskToken {
        self.detached_operations.begin()
    }

    /// Close begins.
    pub(crate) fn end_life(&self) {
        self.live.store(false, Relaxed);
    }

    /// Whether its state was lost with an instance.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    /// Its state was lost with an instance: all its requests fail from now on.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Relaxed);
    }

    /// The state that a scope names, for this connection.
    ///
    /// # Errors
    /// ENOSPC if the filter asks for the export's state before it has opened next, and there are as
    /// many exports with state as are allowed.
    pub(crate) fn scope(&self, scope: wit::Scope) -> Result<&Arc<ScopeState>> {
        match scope {
            wit::Scope::Connection => {
                if let Some(own) = self.own.get() {
                    return Ok(own);
                }
                let export = self.export()?;
                Ok(self.own.get_or_init(|| {
                    let own = self.shared.state.connection();
                    if let Some(next) = self.next.get() {
                        self.shared.state.size_scratch(export, Some(&own), next.hop.size());
                    }
                    own
                }))
            }
            wit::Scope::Exportname => self.export(),
            wit::Scope::Server => Ok(self.shared.state.server()),
        }
    }

    /// The export's state. As long as next is not open, only the name says which disk that will be.
    fn export(&self) -> Result<&Arc<ScopeState>> {
        if let Some(export) = self.export.get() {
            return Ok(export.scope());
        }
        let disk = if self.exportname.is_empty() { DiskId::DEFAULT } else { DiskId::named(&self.exportname) };
        let export = self.shared.state.export(&disk)?;
        Ok(self.export.get_or_init(|| export).scope())
    }

    /// The layer below, if it stays the same while the connection is open.
    pub(crate) fn lasting_next(&self) -> Option<&Arc<Next>> {
        self.next.get_lasting()
    }

    /// The current layer below, if it may be replaced during a call.
    pub(crate) fn replaceable_next(&self) -> Option<Arc<Next>> {
        self.next.get_replaceable()
    }

    /// The current layer below.
    pub(crate) fn next(&self) -> Option<Arc<Next>> {
        self.next.get()
    }

    /// Takes the layer below out, to close it.
    pub(crate) fn take_next(&self) -> Option<Arc<Next>> {
        self.next.take()
    }

    /// Whether the filter may replace the layer below.
    pub(crate) fn reopens(&self) -> bool {
        self.next.is_replaceable()
    }

    /// How often the layer below was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.next.generation()
    }

    /// `next-open.open`.
    pub(crate) async fn open_next(&self, readonly: bool, exportname: &str) -> Result<()> {
        self.check_not_open()?;
        let hop = self.below.open(self.readonly_for(readonly)?, exportname).await?;
        self.put_first(Next::new(hop)).await
    }

    /// The disks of the filter's parameters.
    pub(crate) fn disks(&self) -> &GivenDisks {
        &self.siblings.disks
    }

    /// `next-open.open-shared`.
    pub(crate) async fn open_next_shared(&self, readonly: bool, exportname: &str) -> Result<()> {
        self.check_not_open()?;
        let readonly = self.readonly_for(readonly)?;
        let most = self.shared.limits.exports;
        let next = self.siblings.nexts.get(&self.below, readonly, exportname, most).await?;
        self.put_first(next).await
    }

    fn check_not_open(&self) -> Result<()> {
        match self.next.get() {
            Some(_) => Err(Error::new(Errno::Einval, "next is open already")),
            None => Ok(()),
        }
    }

    async fn put_first(&self, next: Arc<Next>) -> Result<()> {
        self.shared.size_storage(next.hop.size());
        if let Err(error) = self.find_state(&next.hop).await {
            let _ = next.finalize().await;
            next.close().await;
            return Err(error);
        }
        // `put` replaces nothing, because the guest's open asks for this only once.
        let _ = self.next.put(next);
        Ok(())
    }

    /// Finalizes and closes the layer below, if it is open, after an open that failed. If
    /// operations below are still under way, it does so when they have ended.
    pub(crate) async fn close_next(self: &Arc<Self>) {
        let Some(next) = self.take_next() else { return };
        if self.detached_operations.is_idle() {
            return next.end(&self.shared.name).await;
        }
        let conn = Arc::clone(self);
        self.shared.detached_tasks.spawn(async move {
            conn.detached_operations.idle().await;
            next.end(&conn.shared.name).await;
        });
    }

    /// `next-open.reopen`.
    pub(crate) async fn reopen(&self, generation: u64, readonly: bool, exportname: &str) -> Result<u64> {
        let _turn = self.next.reopening.lock().await;
        let now = self.generation();
        if now != generation {
            return Ok(now);
        }
        let hop = self.below.open(self.readonly_for(readonly)?, exportname).await?;
        if self.keeps_state {
            self.size_scratch(&hop)?;
        }
        let old = self.next.put(Next::new(hop));
        if let Some(old) = old {
            old.retire(&self.shared);
        }
        self.next.set_generation(now + 1);
        Ok(now + 1)
    }

    /// The `readonly` to open next with: a read-only connection never opens next for writing.
    fn readonly_for(&self, readonly: bool) -> Result<bool> {
        match self.readonly && !readonly {
            true => Err(Error::new(Errno::Erofs, "a read-only connection cannot be opened for writing")),
            false => Ok(readonly),
        }
    }

    /// Finds the state of the disk below, if the filter keeps state.
    async fn find_state(&self, hop: &Hop) -> Result<()> {
        if !self.keeps_state {
            return Ok(());
        }
        if self.export.get().is_none() {
            let export = self.shared.state.export(&hop.disk().await?)?;
            self.export.get_or_init(|| export);
        }
        self.size_scratch(hop)
    }

    fn size_scratch(&self, hop: &Hop) -> Result<()> {
        self.shared.state.size_scratch(self.export()?, self.own.get(), hop.size());
        Ok(())
    }
}
