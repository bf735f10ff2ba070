//! One connection's layer: what is below it, its handle, and how its requests reach a guest or pass it by.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, Done, Errno, Error, Extents, Flags, Handle, Op, OpenArgs,
    Result, Span,
};

use super::breaker::{Breaker, OnFault, Pass};
use super::filter::{Detached, Exported, Filter};
use super::offers;
use super::pool::{Holder, Instances, Lease};
use crate::connection::bindings::host::types as wit;
use crate::connection::prefetch::Prefetcher;
use crate::connection::shared::Counted;
use crate::connection::stray;
use crate::guest::context::{Phase, Setup, protocol_string};
use crate::guest::instance::{Ask, Fault, Instance, Reply, Transfer};
use crate::state::{ConnectionDeltas, ScopeState};
use rbdkit_chain::{Below, Hop};

/// Closing waits so long for prefetches and strays under way before it leaves the layer below to them.
const DRAIN: Duration = Duration::from_secs(1);

/// The layer below, as one call sees it.
///
/// Every call keeps the one it began with. One that was replaced ends when its last user drops it: it finalizes and closes on a task of
/// its own then.
pub(crate) struct Next {
    pub(crate) hop: Arc<Hop>,
    /// Says where its end is counted, once it was replaced.
    retired: OnceLock<Arc<Filter>>,
}

impl Next {
    fn new(hop: Arc<Hop>) -> Arc<Next> {
        Arc::new(Next { hop, retired: OnceLock::new() })
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if let Some(filter) = self.retired.get() {
            end_later(filter, Arc::clone(&self.hop));
        }
    }
}

/// Finalizes and closes a hop on a task of its own, which the server waits for when it stops.
fn end_later(filter: &Arc<Filter>, hop: Arc<Hop>) {
    let name = filter.name().to_string();
    filter.detached().spawn(async move {
        if let Err(error) = hop.finalize().await {
            tracing::error!("{name}: finalizing {}: {error}", hop.name());
        }
        hop.close().await;
    });
}

/// Where a connection has what is below it.
struct NextCell {
    now: Found,
    generation: AtomicU64,
    /// One reopening at a time.
    reopening: tokio::sync::Mutex<()>,
}

enum Found {
    /// For filters that cannot reopen it, which is nearly all of them: a request finds it without a lock and without counting its users. It
    /// stays until the connection is dropped, but is none any more once it was closed.
    Lasting {
        next: OnceLock<Arc<Next>>,
        closed: AtomicBool,
    },
    Replaceable(RwLock<Option<Arc<Next>>>),
}

impl NextCell {
    fn new(reopens: bool) -> NextCell {
        let now = match reopens {
            true => Found::Replaceable(RwLock::default()),
            false => Found::Lasting { next: OnceLock::new(), closed: AtomicBool::new(false) },
        };
        NextCell { now, generation: AtomicU64::new(0), reopening: tokio::sync::Mutex::default() }
    }

    fn lasting(&self) -> Option<&Arc<Next>> {
        match &self.now {
            Found::Lasting { next, closed } => next.get().filter(|_| !closed.load(Relaxed)),
            Found::Replaceable(_) => None,
        }
    }

    fn replaceable(&self) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { .. } => None,
            Found::Replaceable(now) => now.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn get(&self) -> Option<Arc<Next>> {
        self.lasting().cloned().or_else(|| self.replaceable())
    }

    /// Puts what was opened. What it replaces.
    fn put(&self, next: Arc<Next>) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { next: cell, .. } => cell.set(next).err(),
            Found::Replaceable(now) => now.write().unwrap_or_else(PoisonError::into_inner).replace(next),
        }
    }

    /// There is none any more.
    fn take(&self) -> Option<Arc<Next>> {
        match &self.now {
            Found::Lasting { next, closed } => next.get().filter(|_| !closed.swap(true, Relaxed)).cloned(),
            Found::Replaceable(now) => now.write().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

/// A connection in this layer.
pub(crate) struct Conn {
    pub(crate) filter: Arc<Filter>,
    pub(crate) below: Below,
    pub(crate) exportname: String,
    pub(crate) readonly: bool,
    /// What the guest's open answered.
    pub(crate) handle: AtomicU64,
    pub(crate) deltas: ConnectionDeltas,
    pub(crate) prefetcher: Arc<Prefetcher>,
    instances: Arc<Instances>,
    /// Its share of them.
    holder: Arc<Holder>,
    next: NextCell,
    /// Open has succeeded and close has not begun: a lost instance is told of it again.
    live: AtomicBool,
    /// The instance that held its state is gone and cannot be rebuilt.
    lost: AtomicBool,
    own: OnceLock<Arc<ScopeState>>,
    export: Arc<ScopeState>,
    /// Operations below that go on without their call.
    pub(crate) strays: Arc<Detached>,
    /// This layer ends with the last of them.
    stranded: AtomicBool,
    /// The layer below ends with its last prefetch.
    detached: AtomicBool,
    breaker: Breaker,
    /// A fault has ended it (`--filter-on-fault=disconnect`); finalize and close go on.
    unwanted: AtomicBool,
    _counted: Counted,
}

impl Conn {
    pub(crate) fn client(&self) -> &Arc<Client> {
        self.below.client()
    }

    pub(crate) fn id(&self) -> u64 {
        self.client().id
    }

    /// What a scope names, for this connection.
    pub(crate) fn scope(&self, scope: wit::Scope) -> &Arc<ScopeState> {
        match scope {
            wit::Scope::Connection => self.own.get_or_init(|| {
                let own = self.filter.shared.state.connection();
                if let Some(next) = self.next.get() {
                    self.filter.shared.state.size_scratch(&self.export, Some(&own), next.hop.size());
                }
                own
            }),
            wit::Scope::Exportname => &self.export,
            wit::Scope::Server => self.filter.shared.state.server(),
        }
    }

    pub(crate) fn instances(&self) -> &Arc<Instances> {
        &self.instances
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Relaxed);
    }

    /// Opens this layer. What was opened below is closed again if it fails.
    pub(crate) async fn open(filter: Arc<Filter>, args: OpenArgs, below: Below) -> Result<Arc<Conn>> {
        let export = filter.shared.state.export(&args.exportname)?;
        let instances = filter.instances_for_connection().await?;
        let next = NextCell::new(filter.reopens());
        let conn = Arc::new(Conn {
            prefetcher: Prefetcher::new(&filter.shared, below.thread_model()),
            _counted: Counted::new(&filter.shared.connections),
            holder: Holder::new(below.client().id),
            filter,
            below,
            exportname: args.exportname,
            readonly: args.readonly,
            handle: AtomicU64::new(0),
            deltas: ConnectionDeltas::default(),
            instances,
            next,
            live: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            own: OnceLock::new(),
            export,
            strays: Arc::default(),
            stranded: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            breaker: Breaker::default(),
            unwanted: AtomicBool::new(false),
        });
        if let Err(error) = conn.open_guest().await {
            conn.deltas.take_back();
            conn.end_next().await;
            return Err(error);
        }
        conn.live.store(true, Relaxed);
        conn.filter.add(&conn);
        if conn.filter.exported().background {
            conn.prefetcher.begin_background(&conn);
        }
        Ok(conn)
    }

    async fn open_guest(self: &Arc<Conn>) -> Result<()> {
        if !self.filter.exported().connection {
            return self.open_next(self.readonly, &self.exportname).await;
        }
        let _turn = self.filter.turn_to_open().await;
        let open = Ask::Open {
            readonly: self.readonly,
            exportname: self.exportname.clone(),
            tls: self.client().tls,
            replayed: false,
        };
        let Reply::Number(handle) = self.ask(open).await? else { return Err(Errno::Eio.into()) };
        self.handle.store(handle?, Relaxed);
        self.ask(Ask::Prepare).await?.done()
    }

    /// `next-open.open`.
    pub(crate) async fn open_next(&self, readonly: bool, exportname: &str) -> Result<()> {
        if self.next.get().is_some() {
            return Err(Error::new(Errno::Einval, "next is open already"));
        }
        let hop = self.below.open(self.readonly_for(readonly)?, exportname).await?;
        self.size_scratch(&hop);
        // Opening is asked for once, by the guest's open.
        let _ = self.next.put(Next::new(hop));
        Ok(())
    }

    fn size_scratch(&self, hop: &Hop) {
        self.filter.shared.state.size_scratch(&self.export, self.own.get(), hop.size());
    }

    /// Nobody gets to write through a connection that promised not to.
    fn readonly_for(&self, readonly: bool) -> Result<bool> {
        match self.readonly && !readonly {
            true => Err(Error::new(Errno::Erofs, "a read-only connection cannot be opened for writing")),
            false => Ok(readonly),
        }
    }

    /// What is below, where it stays the same for as long as the connection is open.
    pub(crate) fn lasting_next(&self) -> Option<&Arc<Next>> {
        self.next.lasting()
    }

    /// What is below now.
    pub(crate) fn next(&self) -> Option<Arc<Next>> {
        self.next.get()
    }

    /// What is below, where it may be replaced while a call goes on.
    pub(crate) fn replaceable_next(&self) -> Option<Arc<Next>> {
        self.next.replaceable()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.next.generation.load(Relaxed)
    }

    /// `next-open.reopen`.
    pub(crate) async fn reopen(&self, generation: u64, readonly: bool, exportname: &str) -> Result<u64> {
        let _turn = self.next.reopening.lock().await;
        let now = self.generation();
        if now != generation {
            return Ok(now);
        }
        let hop = self.below.open(self.readonly_for(readonly)?, exportname).await?;
        self.size_scratch(&hop);
        let old = self.next.put(Next::new(hop));
        if let Some(old) = old {
            // Its last user, this one perhaps, ends it.
            let _ = old.retired.set(Arc::clone(&self.filter));
        }
        self.next.generation.store(now + 1, Relaxed);
        Ok(now + 1)
    }

    /// Finalizes and closes what is below, when the layer never came to be.
    async fn end_next(&self) {
        if let Some(next) = self.next.take() {
            let _ = next.hop.finalize().await;
            next.hop.close().await;
        }
    }

    /// A call outside of requests, which goes before them.
    async fn ask(self: &Arc<Conn>, ask: Ask) -> Result<Reply> {
        let patient = matches!(ask, Ask::Finalize | Ask::Close);
        self.serve(Setup { patient, ..Setup::new(Phase::OPEN) }, ask, true).await
    }

    /// Runs a call without a payload on an instance.
    async fn serve(self: &Arc<Conn>, setup: Setup, ask: Ask, in_front: bool) -> Result<Reply> {
        // Finalize may have to write back what must not be lost: it is always tried.
        let pass = if setup.patient { None } else { Some(self.admit()?) };
        let mut lease = self.lease(in_front, pass).await?;
        // Replaying this connection may just have shown that it cannot be.
        let Some(instance) = lease.instance().filter(|_| !self.lost.load(Relaxed)) else {
            return Err(self.was_lost());
        };
        match instance.serve(setup, Some(self), &ask).await.1 {
            Ok(reply) => {
                self.breaker.success();
                self.filter.finish(lease);
                Ok(reply)
            }
            Err(fault) => {
                drop(lease);
                Err(self.faulted(ask.name(), ask.offset(), pass, &fault))
            }
        }
    }

    /// Whether the guest is asked, after what it did before.
    fn admit(&self) -> Result<Pass> {
        if self.unwanted.load(Relaxed) {
            return Err(self.ended_with_a_fault());
        }
        self.filter.admit(&self.breaker)
    }

    /// The same after waiting.
    fn admit_again(&self, pass: Pass) -> Result<()> {
        if self.unwanted.load(Relaxed) {
            return Err(self.ended_with_a_fault());
        }
        self.filter.admit_again(&self.breaker, pass)
    }

    fn ended_with_a_fault(&self) -> Error {
        Error::new(Errno::Eshutdown, format!("{}: the connection ended with a fault", self.filter.name()))
    }

    /// Whether its state is in the one instance that serves it, and could not be had again without asking for it.
    pub(crate) fn needs_its_instance(&self) -> bool {
        self.instances.is_single() && self.filter.holds_state()
    }

    /// A call of this connection ended in a fault; its instance is gone. The error for the request. Without a pass it was asked in any case.
    fn faulted(&self, what: &str, offset: Option<u64>, pass: Option<Pass>, fault: &Fault) -> Error {
        if fault.gone {
            tracing::debug!("{}: {what}: ended, as its client has gone", self.filter.name());
            return Errno::Eshutdown.into();
        }
        let error = self.filter.faulted(what, offset, fault, &self.instances);
        if let Some(pass) = pass {
            self.filter.count_fault(&self.breaker, pass);
        }
        if matches!(self.filter.shared.on_fault, OnFault::Disconnect) {
            self.unwanted.store(true, Relaxed);
            self.client().disconnect();
        }
        error
    }

    /// An instance that is ready and free, if there is one: what a request finds most of the time.
    fn lease_now(&self) -> Option<Lease<'_>> {
        if self.lost.load(Relaxed) {
            return None;
        }
        self.instances.try_take_ready(&self.holder)
    }

    async fn lease(&self, in_front: bool, pass: Option<Pass>) -> Result<Lease<'_>> {
        if self.lost.load(Relaxed) {
            return Err(self.was_lost());
        }
        let holder = (!in_front).then_some(&self.holder);
        let mut lease = match self.instances.try_take(holder) {
            Some(lease) => lease,
            // What is rare is boxed: the future of every request would have to have room for it, and is moved to where it runs.
            None => {
                let lease = Box::pin(self.wait_for_a_place(holder)).await?;
                // Those before it in the line may have failed, one after the other.
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
            Box::pin(self.filter.fill(&mut lease, &self.instances)).await?;
        }
        Ok(lease)
    }

    /// Waits in line; a request does so for as long as its client is there.
    async fn wait_for_a_place<'a>(&'a self, holder: Option<&'a Arc<Holder>>) -> Result<Lease<'a>> {
        let waits_on = holder.is_none() || stray::is_steadfast_above();
        let place = stray::wanted(self.client(), waits_on, self.instances.take(holder)).await;
        place.unwrap_or_else(|| Err(Errno::Eshutdown.into()))
    }

    fn was_lost(&self) -> Error {
        Error::new(Errno::Eshutdown, format!("{}: the connection's state was lost in a fault", self.filter.name()))
    }

    /// Tells a fresh instance of this connection, which goes on.
    pub(crate) async fn replay(self: &Arc<Conn>, instance: &mut Instance) -> std::result::Result<(), Fault> {
        let open = Ask::Open {
            readonly: self.readonly,
            exportname: self.exportname.clone(),
            tls: self.client().tls,
            replayed: true,
        };
        for ask in [open, Ask::Prepare] {
            let setup = Setup { replayed: true, ..Setup::new(Phase::OPEN) };
            match instance.serve(setup, Some(self), &ask).await.1? {
                Reply::Number(Ok(handle)) => self.handle.store(handle, Relaxed),
                Reply::Done(Ok(())) => {}
                _ => {
                    tracing::error!("{}: {} of a lost connection was refused", self.filter.name(), ask.name());
                    self.lose();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The answer to something that neither is exported nor passes.
    fn withdrawn(&self, what: &str) -> Error {
        Error::new(Errno::Enotsup, format!("{}: {what} is not offered by this filter", self.filter.name()))
    }

    fn no_next(&self) -> Error {
        Error::new(Errno::Enxio, format!("{}: there is no next layer", self.filter.name()))
    }

    /// Passes an operation by this layer. The layer below it stays open for as long as the operation runs.
    fn pass<T: Send + 'static>(&self, call: impl FnOnce(&Arc<Hop>) -> Op<Result<T>>) -> Op<Result<T>> {
        match self.next.get() {
            Some(next) => self.keep(call(&next.hop), next),
            None => Op::Ready(Err(self.no_next())),
        }
    }

    /// The same with a payload.
    fn pass_with(&self, buffer: Buffer, call: impl FnOnce(&Arc<Hop>, Buffer) -> Op<Done>) -> Op<Done> {
        match self.next.get() {
            Some(next) => self.keep(call(&next.hop, buffer), next),
            None => Op::Ready((buffer, Err(self.no_next()))),
        }
    }

    /// Keeps next while an operation runs, where it could be replaced meanwhile.
    fn keep<T: Send + 'static>(&self, op: Op<T>, next: Arc<Next>) -> Op<T> {
        match op {
            Op::Later(future) if self.filter.reopens() => Op::later(async move {
                let answer = future.await;
                drop(next);
                answer
            }),
            op => op,
        }
    }

    /// `background.next-range`. A fault is logged, and is none.
    pub(crate) async fn next_range(self: Arc<Conn>) -> Option<(u64, u64)> {
        match self.serve(Setup::new(Phase::DATA), Ask::NextRange, false).await {
            Ok(Reply::Range(range)) => range,
            _ => None,
        }
    }

    async fn data(self: Arc<Conn>, ask: Ask) -> Result<()> {
        self.serve(Setup::new(Phase::DATA), ask, false).await?.done()
    }

    /// [`Conn::serve`] for a read or a write. One flat future: every one that is within another is moved and told apart at each poll.
    async fn transfer(self: Arc<Conn>, transfer: Transfer, buffer: Buffer, span: Span) -> Done {
        let pass = match self.admit() {
            Ok(pass) => pass,
            Err(error) => return (buffer, Err(error)),
        };
        let mut lease = match self.lease_now() {
            Some(lease) => lease,
            None => match Box::pin(self.lease(false, Some(pass))).await {
                Ok(lease) => lease,
                Err(error) => return (buffer, Err(error)),
            },
        };
        let Some(instance) = lease.instance().filter(|_| !self.lost.load(Relaxed)) else {
            return (buffer, Err(self.was_lost()));
        };
        instance.begin(&self, &transfer, buffer, span);
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
            // It is with an operation that goes on without this one. Nobody must take another one for it: it might be written.
            None => (Buffer::new(0), result.and(Err(Errno::Eio.into()))),
        }
    }

    async fn extents_of_guest(self: Arc<Conn>, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        let setup = Setup { answer: Some(offset), ..Setup::new(Phase::DATA) };
        let ask = Ask::Extents { offset, length, flags: flags.into() };
        match self.serve(setup, ask, false).await? {
            Reply::Whole(list) => Ok(list),
            Reply::Extents(Err(error)) => Err(error),
            _ => Err(Errno::Eio.into()),
        }
    }

    async fn size(self: Arc<Conn>) -> Result<u64> {
        match self.ask(Ask::Size).await? {
            Reply::Number(size) => size,
            _ => Err(Errno::Eio.into()),
        }
    }

    async fn block_size(self: Arc<Conn>) -> Result<Option<BlockSizes>> {
        match self.ask(Ask::BlockSize).await? {
            Reply::BlockSize(Ok(sizes)) => Ok(Some(sizes.into())),
            Reply::BlockSize(Err(error)) if error.errno() == Errno::Enotsup => Ok(None),
            Reply::BlockSize(Err(error)) => Err(error),
            _ => Err(Errno::Eio.into()),
        }
    }

    async fn description(self: Arc<Conn>) -> Result<Option<String>> {
        match self.ask(Ask::Description).await? {
            Reply::Text(Some(text)) => Ok(Some(protocol_string(&text)?.to_string())),
            Reply::Text(None) => Ok(None),
            _ => Err(Errno::Eio.into()),
        }
    }

    /// What this layer offers.
    async fn offers(self: Arc<Conn>) -> Result<Capabilities> {
        let below = self.next.get().map_or(Capabilities::READ_ONLY, |next| next.hop.can());
        let told = if self.filter.exported().features {
            let Reply::Can(can) = self.ask(Ask::Can(below.into())).await? else { return Err(Errno::Eio.into()) };
            Some(Capabilities::from(can?))
        } else {
            None
        };
        let (mut can, lies) = offers::settle(self.filter.exported(), below, told);
        can.write &= !self.readonly;
        for lie in lies {
            self.filter.lied("can", &Error::new(Errno::Eio, lie));
        }
        Ok(can.normalized())
    }

    /// The end of work, after the last operation: those that a client has left behind hold locks, and what they write comes first.
    async fn finalize(self: Arc<Conn>) -> Result<()> {
        self.prefetcher.stop();
        if self.strays.is_idle() || tokio::time::timeout(DRAIN, self.strays.ended()).await.is_ok() {
            return self.finalize_settled().await;
        }
        tracing::debug!("{}: operations below are still under way: the layer ends with them", self.filter.name());
        self.stranded.store(true, Relaxed);
        Ok(())
    }

    /// The guest's end of work, then that of the layer below, which still works while the guest is at it.
    async fn finalize_settled(self: &Arc<Conn>) -> Result<()> {
        let own = match self.filter.exported().connection && !self.lost.load(Relaxed) {
            true => self.ask(Ask::Finalize).await.and_then(Reply::done),
            false => Ok(()),
        };
        if let Err(error) = &own {
            tracing::error!("{}: finalize: {error}", self.filter.name());
        }
        let Some(next) = self.next.get() else { return own };
        if self.prefetcher.drained(DRAIN).await {
            return next.hop.finalize().await.and(own);
        }
        tracing::debug!("{}: prefetches are still under way: the layer below ends with them", self.filter.name());
        self.detached.store(true, Relaxed);
        own
    }

    async fn close(self: Arc<Conn>) {
        if !self.stranded.load(Relaxed) {
            return self.close_settled().await;
        }
        let conn = Arc::clone(&self);
        self.filter.detached().spawn(async move {
            conn.strays.ended().await;
            if let Err(error) = conn.finalize_settled().await {
                tracing::error!("{}: finalizing, after its client had gone: {error}", conn.filter.name());
            }
            conn.close_settled().await;
        });
    }

    async fn close_settled(self: &Arc<Conn>) {
        self.live.store(false, Relaxed);
        self.filter.remove(self);
        let next = self.next.take();
        if self.filter.exported().connection && !self.lost.load(Relaxed) {
            // Next is gone for the guest: a fault is logged where it happens, and there is nothing else to be told.
            let _ = self.ask(Ask::Close).await;
        }
        self.deltas.take_back();
        self.filter.shared.log_counters("so far");
        let Some(next) = next else { return };
        if !self.detached.load(Relaxed) {
            return next.hop.close().await;
        }
        let conn = Arc::clone(self);
        self.filter.detached().spawn(async move {
            conn.prefetcher.drained(Duration::MAX).await;
            if let Err(error) = next.hop.finalize().await {
                tracing::error!("{}: finalizing {}: {error}", conn.filter.name(), next.hop.name());
            }
            next.hop.close().await;
        });
    }
}

/// The handle that the chain calls.
pub(crate) struct Opened(pub(crate) Arc<Conn>);

impl Opened {
    fn conn(&self) -> Arc<Conn> {
        Arc::clone(&self.0)
    }

    fn exported(&self) -> &Exported {
        self.0.filter.exported()
    }

    /// An operation that nothing but the guest can do.
    fn guest(&self, ask: Ask) -> Op<Result<()>> {
        Op::later(self.conn().data(ask))
    }
}

impl Handle for Opened {
    fn get_size(&self) -> Op<Result<u64>> {
        match self.exported().info {
            true => Op::later(self.conn().size()),
            false => self.0.pass(|hop| Op::Ready(Ok(hop.size()))),
        }
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        match self.exported().info {
            true => Op::later(self.conn().block_size()),
            false => self.0.pass(|hop| Op::Ready(Ok(hop.block_sizes()))),
        }
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        match self.exported().info {
            true => Op::later(self.conn().description()),
            false => self.0.pass(|hop| Op::Ready(Ok(hop.description().map(str::to_string)))),
        }
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::later(self.conn().offers())
    }

    fn is_prompt(&self) -> bool {
        // An opaque filter mostly has data of its own.
        let below = || self.0.pass(|hop| Op::Ready(Ok(hop.is_prompt())));
        self.exported().transparent && matches!(below(), Op::Ready(Ok(true)))
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if self.exported().reads {
            let transfer = Transfer { write: false, offset, length: span.len, flags: wit::CommandFlags::empty() };
            return Op::later_from(|| self.conn().transfer(transfer, buffer, span));
        }
        self.0.pass_with(buffer, |hop, buffer| hop.pread(buffer, span, offset))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        if self.exported().writes {
            let transfer = Transfer { write: true, offset, length: span.len, flags: flags.into() };
            return Op::later_from(|| self.conn().transfer(transfer, buffer, span));
        }
        if !self.exported().transparent {
            return Op::Ready((buffer, Err(Errno::Erofs.into())));
        }
        self.0.pass_with(buffer, |hop, buffer| hop.pwrite(buffer, span, offset, flags))
    }

    fn flush(&self) -> Op<Result<()>> {
        match self.exported().flushes {
            true => self.guest(Ask::Flush),
            false => self.0.pass(|hop| hop.flush()),
        }
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        match (self.exported().trims, self.exported().transparent) {
            (true, _) => self.guest(Ask::Trim { offset, length, flags: flags.into() }),
            (false, true) => self.0.pass(|hop| hop.trim(offset, length, flags)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("trim"))),
        }
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        match (self.exported().zeroes, self.exported().transparent) {
            (true, _) => self.guest(Ask::Zero { offset, length, flags: flags.into() }),
            (false, true) => self.0.pass(|hop| hop.zero(offset, length, flags)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("zero"))),
        }
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        match (self.exported().caching, self.exported().transparent) {
            (true, _) => self.guest(Ask::Cache { offset, length }),
            (false, true) => self.0.pass(|hop| hop.cache(offset, length)),
            (false, false) => Op::Ready(Err(self.0.withdrawn("cache"))),
        }
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        match (self.exported().mapping, self.exported().transparent) {
            (true, _) => Op::later(self.conn().extents_of_guest(offset, length, flags)),
            (false, true) => self.0.pass(|hop| hop.extents(offset, length, flags)),
            (false, false) => Op::Ready(Ok(Extents::all_data(offset, length))),
        }
    }

    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.conn().finalize())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.conn().close())
    }
}
