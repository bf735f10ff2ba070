//! Serves the calls of one connection: finds an instance for each, runs it, and deals with its
//! faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rbdkit_chain::{Hop, NextLayer};
use rbdkit_plugin_api::{
    BlockSizes, Buffer, Capabilities, Disk, DiskId, Done, Errno, Error, Extents, Flags, Op, OpenArgs, Result, Span,
    lock,
};

use super::answers::{below, block_sizes, offered};
use super::breaker::{Breaker, Pass};
use super::filter::Filter;
use super::pool::{Holder, InstancePool, Lease};
use super::version::Version;
use crate::connection::conn::{Connection, Told};
use crate::connection::next::Next;
use crate::connection::on_fault::OnFault;
use crate::connection::prefetch::NextRange;
use crate::connection::waiting::WaitPolicy;
use crate::guest::call::CallKind;
use crate::guest::export_calls::{
    BlockSizeCall, CanCall, CloseCall, ExportCall, ExportDescriptionCall, ExtentsCall, FinalizeCall, GetSizeCall,
    NextRangeCall, OpenCall, PrepareCall,
};
use crate::guest::exported::Exported;
use crate::guest::fault::{Fault, FaultKind};
use crate::guest::instance::Transfer;
use crate::guest::metered::Computed;
use crate::guest::text::protocol_string;

/// How long the end of a connection waits for prefetches and detached operations. After that, the
/// layer below is closed when the last of them has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves the calls of one connection.
pub(super) struct CallServer {
    conn: Arc<Connection>,
    filter: Arc<Filter>,
    /// A reload gives the pool another version of the filter, if that version exports the same.
    pool: Arc<InstancePool>,
    /// What all versions export that serve this connection.
    exported: Exported,
    /// The connection's share of the pool.
    holder: Arc<Holder>,
    breaker: Breaker,
    /// A fault has ended the connection (`--filter-on-fault=disconnect`). Finalize and close still
    /// run.
    unwanted: AtomicBool,
    /// This layer is closed when the last of its detached operations has ended.
    ends_with_operations: AtomicBool,
    /// The layer below is closed when its last prefetch has ended.
    next_ends_with_prefetches: AtomicBool,
}

/// Which calls get an instance first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// A request: it counts towards the connection's share.
    Request,
    /// A call that opens, asks about, or ends the connection: it comes before requests and does not
    /// count.
    Lifecycle,
}

impl CallServer {
    /// Opens this layer for a connection. What was opened below is closed again if it fails.
    pub(crate) async fn open(filter: Arc<Filter>, args: OpenArgs, below: NextLayer) -> Result<Arc<CallServer>> {
        let (pool, version) = filter.pool_for_connection().await?;
        let conn =
            Connection::new(&filter.shared, args, below, &filter.siblings, Filter::connection_traits(&version, &pool));
        let server = Arc::new(CallServer {
            holder: Holder::new(conn.id()),
            conn,
            filter,
            pool,
            exported: version.traits.exported,
            breaker: Breaker::default(),
            unwanted: AtomicBool::new(false),
            ends_with_operations: AtomicBool::new(false),
            next_ends_with_prefetches: AtomicBool::new(false),
        });
        drop(version);
        let conn = &server.conn;
        server.pool.add_tenant(conn);
        if server.exported().on_alarm {
            server.enable_alarms();
        }
        if let Err(error) = server.open_guest().await {
            conn.alarms.end();
            if server.exported().on_connection {
                conn.announce_end();
            }
            server.pool.remove_tenant(conn);
            conn.deltas.take_back();
            conn.close_next().await;
            return Err(error);
        }
        conn.begin_life();
        if server.exported().on_connection {
            conn.announce();
        }
        if server.exported().background {
            conn.prefetcher.begin_background(conn.next().as_deref(), server.next_ranges());
        }
        Ok(server)
    }

    async fn open_guest(self: &Arc<CallServer>) -> Result<()> {
        let conn = &self.conn;
        if !self.exported().connection {
            return conn.open_next(conn.readonly, &conn.exportname).await;
        }
        let _turn = self.filter.turn_to_open(conn.client()).await?;
        let tls = conn.client().is_tls();
        let open = OpenCall { readonly: conn.readonly, exportname: &conn.exportname, tls, replayed: false };
        conn.handle.store(self.ask(open).await?, Relaxed);
        self.ask(PrepareCall).await
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.conn
    }

    #[inline]
    pub(crate) fn exported(&self) -> &Exported {
        &self.exported
    }

    /// Asks the guest for its background ranges, as long as the connection exists.
    fn next_ranges(self: &Arc<CallServer>) -> NextRange {
        let server = Arc::downgrade(self);
        Box::new(move || {
            let server = server.upgrade();
            Box::pin(async move {
                let Some(server) = server else { return (None, Duration::ZERO) };
                let (range, computed) = server.next_range().await;
                (range.and_then(|range| Some((range, server.conn.next()?))), computed)
            })
        })
    }

    /// `background.next-range`, and how long the guest computed. A fault is logged, and counts as
    /// no range.
    async fn next_range(&self) -> (Option<(u64, u64)>, Duration) {
        let computed = Computed::default();
        let range = self.serve(computed.of(NextRangeCall), Priority::Request).await;
        (range.ok().flatten(), computed.time())
    }

    /// A call that opens, asks about, or ends the connection.
    async fn ask<E: ExportCall>(&self, call: E) -> Result<E::Answer> {
        self.serve(call, Priority::Lifecycle).await
    }

    /// Runs a call without a payload on an instance.
    async fn serve<E: ExportCall>(&self, call: E, priority: Priority) -> Result<E::Answer> {
        // Finalize may have to write back data that must not be lost, so it always runs.
        let pass = if E::KIND == CallKind::Ending { None } else { Some(self.admit()?) };
        let lease = self.lease(priority, E::KIND, pass).await?;
        self.serve_on(lease, pass, call).await
    }

    /// Runs a call on the instance of this lease.
    pub(super) async fn serve_on<E: ExportCall>(
        &self,
        mut lease: Lease<'_>,
        pass: Option<Pass>,
        call: E,
    ) -> Result<E::Answer> {
        // Replaying this connection may just have shown that it cannot be replayed.
        let Some(instance) = lease.instance().filter(|_| !self.conn.is_lost()) else {
            return Err(self.was_lost());
        };
        match instance.serve(call.setup(), Some(&self.conn), &call).await {
            Ok(answer) => {
                self.breaker.success();
                self.filter.finish(lease);
                answer
            }
            Err(fault) => {
                drop(lease);
                Err(self.faulted(E::NAME, call.offset(), pass, &fault))
            }
        }
    }

    /// Lets a call through to the guest, unless earlier faults forbid it.
    #[inline]
    pub(super) fn admit(&self) -> Result<Pass> {
        if self.unwanted.load(Relaxed) {
            return Err(self.ended_with_a_fault());
        }
        self.filter.admit(&self.breaker)
    }

    /// [`CallServer::admit`] for a call that has waited since it was let through.
    fn admit_again(&self, pass: Pass) -> Result<()> {
        if self.unwanted.load(Relaxed) {
            return Err(self.ended_with_a_fault());
        }
        self.filter.admit_again(&self.breaker, pass)
    }

    fn ended_with_a_fault(&self) -> Error {
        Error::new(Errno::Eshutdown, format!("{}: the connection ended with a fault", self.filter.name()))
    }

    /// Reports that a call of this connection ended in a fault. Its instance is gone. Returns the
    /// error for the request. `pass` is None for a call that runs whatever happened before.
    fn faulted(&self, what: &str, offset: Option<u64>, pass: Option<Pass>, fault: &Fault) -> Error {
        match fault.kind {
            FaultKind::Guest => {}
            FaultKind::Gone => {
                tracing::debug!("{}: {what}: ended, as its client has gone", self.filter.name());
                return Errno::Eshutdown.into();
            }
            FaultKind::NoBuffers => return self.filter.out_of_buffers(what, fault, &self.pool),
        }
        let error = self.filter.faulted(what, offset, fault, &self.pool);
        if let Some(pass) = pass {
            self.filter.count_fault(&self.breaker, pass);
        }
        if matches!(self.filter.shared.on_fault, OnFault::Disconnect) {
            self.unwanted.store(true, Relaxed);
            self.conn.client().disconnect();
        }
        error
    }

    /// An instance that is ready and free, if there is one. Most requests find one.
    fn lease_now(&self) -> Option<Lease<'_>> {
        if self.conn.is_lost() {
            return None;
        }
        self.pool.try_take_ready(&self.holder)
    }

    pub(super) async fn lease(&self, priority: Priority, kind: CallKind, pass: Option<Pass>) -> Result<Lease<'_>> {
        if self.conn.is_lost() {
            return Err(self.was_lost());
        }
        let holder = (priority == Priority::Request).then_some(&self.holder);
        let mut lease = match self.pool.try_take(holder) {
            Some(lease) => lease,
            // Waiting is rare, so its future is boxed: otherwise the future of every request would
            // have to be large enough for it, and that future is moved.
            None => {
                let lease = Box::pin(self.wait_for_a_place(holder, kind)).await?;
                // Calls ahead of it in the wait queue may have failed in the meantime.
                match pass.map_or(Ok(()), |pass| self.admit_again(pass)) {
                    Ok(()) => lease,
                    Err(error) => {
                        lease.give_back();
                        return Err(error);
                    }
                }
            }
        };
        if lease.instance().is_none() {
            Box::pin(self.filter.fill(&mut lease, &self.pool)).await?;
        }
        Ok(lease)
    }

    /// Waits in the wait queue of the pool. All but finalize and close do so while their client is
    /// there and the server does not stop.
    async fn wait_for_a_place<'a>(&'a self, holder: Option<&'a Arc<Holder>>, kind: CallKind) -> Result<Lease<'a>> {
        let policy = match kind {
            CallKind::Ending => WaitPolicy::UntilDone,
            CallKind::Ordinary | CallKind::Replay => WaitPolicy::inherited(),
        };
        let stopping = &self.conn.shared.stopping;
        let place = policy.wait(self.conn.client(), stopping, self.pool.take(holder)).await;
        place.unwrap_or_else(|| Err(Errno::Eshutdown.into()))
    }

    fn was_lost(&self) -> Error {
        Error::new(Errno::Eshutdown, format!("{}: the connection's state was lost in a fault", self.filter.name()))
    }

    /// The error of an operation that the filter neither exports nor passes on.
    pub(super) fn withdrawn(&self, what: &str) -> Error {
        Error::new(Errno::Enotsup, format!("{}: {what} is not offered by this filter", self.filter.name()))
    }

    fn no_next(&self) -> Error {
        Error::new(Errno::Enxio, format!("{}: there is no next layer", self.filter.name()))
    }

    /// Passes an operation on to the layer below, which stays open while the operation runs.
    pub(crate) fn pass<T: Send + 'static>(&self, call: impl FnOnce(&Arc<Hop>) -> Op<Result<T>>) -> Op<Result<T>> {
        match self.conn.next() {
            Some(next) => self.keep(call(&next.hop), next),
            None => Op::Ready(Err(self.no_next())),
        }
    }

    /// [`CallServer::pass`] with a payload.
    pub(super) fn pass_with(&self, buffer: Buffer, call: impl FnOnce(&Arc<Hop>, Buffer) -> Op<Done>) -> Op<Done> {
        match self.conn.next() {
            Some(next) => self.keep(call(&next.hop, buffer), next),
            None => Op::Ready((buffer, Err(self.no_next()))),
        }
    }

    /// Keeps next open while an operation runs, if next could be replaced in the meantime.
    fn keep<T: Send + 'static>(&self, op: Op<T>, next: Arc<Next>) -> Op<T> {
        match op {
            Op::Later(future) if self.conn.reopens() => Op::later(async move {
                let answer = future.await;
                drop(next);
                answer
            }),
            op => op,
        }
    }

    /// A request without a payload and without an answer besides success.
    pub(crate) async fn data<E: ExportCall<Answer = ()>>(self: Arc<CallServer>, call: E) -> Result<()> {
        self.serve(call, Priority::Request).await
    }

    /// A read or a write. It is one flat future, because each nested future would be moved once and
    /// would cost a branch at each poll.
    pub(crate) async fn transfer(self: Arc<CallServer>, transfer: Transfer, buffer: Buffer, span: Span) -> Done {
        let pass = match self.admit() {
            Ok(pass) => pass,
            Err(error) => return (buffer, Err(error)),
        };
        let mut lease = match self.lease_now() {
            Some(lease) => lease,
            None => match Box::pin(self.lease(Priority::Request, CallKind::Ordinary, Some(pass))).await {
                Ok(lease) => lease,
                Err(error) => return (buffer, Err(error)),
            },
        };
        let Some(instance) = lease.instance().filter(|_| !self.conn.is_lost()) else {
            return (buffer, Err(self.was_lost()));
        };
        instance.begin(&self.conn, &transfer, buffer, span);
        let answer = instance.run(transfer).await;
        let (buffer, result) = instance.finish(answer);
        let result = match result {
            Ok(result) => {
                self.breaker.success();
                self.filter.finish(lease);
                result
            }
            Err(fault) => {
                drop(lease);
                Err(self.faulted(transfer.name(), Some(transfer.offset), Some(pass), &fault))
            }
        };
        match buffer {
            Some(buffer) => (buffer, result),
            // A detached operation has the buffer and may still write to it, so the caller gets an
            // empty one.
            None => (Buffer::new(0), result.and(Err(Errno::Eio.into()))),
        }
    }

    pub(crate) async fn extents(self: Arc<CallServer>, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        self.serve(ExtentsCall { offset, length, flags: flags.into() }, Priority::Request).await
    }

    /// The disk of this layer: the one below, or what the filter makes of it under the names that
    /// it lists.
    pub(super) async fn disk(&self) -> Result<Disk> {
        let below = match self.conn.next() {
            Some(next) => next.hop.disk().await?,
            None => DiskId::DEFAULT,
        };
        Ok(if self.exported().names { Disk::ByListedName(below) } else { Disk::Is(below) })
    }

    pub(crate) async fn size(self: Arc<CallServer>) -> Result<u64> {
        self.tell(|| self.ask(GetSizeCall), |told, size| told.size = Some(*size)).await
    }

    pub(crate) async fn block_size(self: Arc<CallServer>) -> Result<Option<BlockSizes>> {
        let ask = || async { block_sizes(self.ask(BlockSizeCall).await) };
        self.tell(ask, |told, sizes| told.block_sizes = Some(*sizes)).await
    }

    /// Asks the guest about the export, and records what the client is told. If a reload gave the
    /// pool another version meanwhile, that version is asked.
    async fn tell<T, F: Future<Output = Result<T>>>(
        &self,
        ask: impl Fn() -> F,
        record: impl Fn(&mut Told, &T),
    ) -> Result<T> {
        loop {
            let version: Option<Arc<Version>> = self.pool.version();
            let answer = ask().await?;
            let record = || record(&mut lock(&self.conn.told), &answer);
            if version.is_none_or(|version| self.pool.if_still_of(&version, record)) {
                return Ok(answer);
            }
        }
    }

    pub(crate) async fn description(self: Arc<CallServer>) -> Result<Option<String>> {
        match self.ask(ExportDescriptionCall).await? {
            Some(text) => Ok(Some(protocol_string(&text)?.to_string())),
            None => Ok(None),
        }
    }

    /// What this layer offers.
    pub(super) async fn offers(self: Arc<CallServer>) -> Result<Capabilities> {
        if !self.exported().features {
            return Ok(self.settle(None));
        }
        let ask =
            || async { Ok(self.settle(Some(self.ask(CanCall { below: below(&self.conn).into() }).await?.into()))) };
        self.tell(ask, |told, can| told.can = Some(*can)).await
    }

    /// What the layer offers after the guest claimed this.
    fn settle(&self, claimed: Option<Capabilities>) -> Capabilities {
        let (can, false_claims) = offered(self.exported(), &self.conn, claimed);
        for claim in false_claims {
            self.filter.report_false_answer("can", claim);
        }
        can
    }

    /// Finalizes the layer after its last operation. It waits for detached operations first,
    /// because they hold locks and may still write.
    pub(crate) async fn finalize(self: Arc<CallServer>) -> Result<()> {
        self.conn.prefetcher.stop();
        self.conn.begin_finalize();
        let operations = &self.conn.detached_operations;
        if operations.is_idle() || tokio::time::timeout(DRAIN, operations.idle()).await.is_ok() {
            return self.finalize_settled().await;
        }
        tracing::debug!("{}: operations below are still under way: the layer ends with them", self.filter.name());
        self.ends_with_operations.store(true, Relaxed);
        Ok(())
    }

    /// Finalizes the guest, then the layer below, which still works while the guest finalizes.
    async fn finalize_settled(&self) -> Result<()> {
        let own = match self.exported().connection && !self.conn.is_lost() {
            true => self.ask(FinalizeCall).await,
            false => Ok(()),
        };
        if let Err(error) = &own {
            tracing::error!("{}: finalize: {error}", self.filter.name());
        }
        let Some(next) = self.conn.next() else { return own };
        if self.conn.prefetcher.drained(DRAIN).await {
            return next.finalize().await.and(own);
        }
        tracing::debug!("{}: prefetches are still under way: the layer below ends with them", self.filter.name());
        self.next_ends_with_prefetches.store(true, Relaxed);
        own
    }

    pub(crate) async fn close(self: Arc<CallServer>) {
        if !self.ends_with_operations.load(Relaxed) {
            return self.close_settled().await;
        }
        let server = Arc::clone(&self);
        self.conn.shared.detached_tasks.spawn(async move {
            server.conn.detached_operations.idle().await;
            if let Err(error) = server.finalize_settled().await {
                tracing::error!("{}: finalizing, after its client had gone: {error}", server.filter.name());
            }
            server.close_settled().await;
        });
    }

    async fn close_settled(&self) {
        self.conn.end_life();
        self.pool.remove_tenant(&self.conn);
        let next = self.conn.take_next();
        if self.exported().connection && !self.conn.is_lost() {
            // Close has no answer, and a fault is logged where it happens.
            let _ = self.ask(CloseCall).await;
        }
        self.conn.deltas.take_back();
        self.conn.shared.counters.log(self.filter.name(), "so far");
        let Some(next) = next else { return };
        if !self.next_ends_with_prefetches.load(Relaxed) {
            return next.close().await;
        }
        let conn = Arc::clone(&self.conn);
        self.conn.shared.detached_tasks.spawn(async move {
            conn.prefetcher.drained(Duration::MAX).await;
            next.end(&conn.shared.name).await;
        });
    }
}
