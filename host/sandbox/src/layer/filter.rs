//! A configured filter: creates its instances, takes them back after a call, and handles their
//! faults.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use rbdkit_chain::NextLayer;
use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{Client, ConfigError, Errno, Error, Result, ThreadModel, lock};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::breaker::{Breaker, Pass};
use super::pool::{InstancePool, Lease};
use super::version::{FilterTraits, Replacement, Version, refused};
use crate::connection::bindings::host::types as wit;
use crate::connection::conn::{Connection, ConnectionTraits};
use crate::connection::log::CAUSE;
use crate::connection::on_fault::OnFault;
use crate::connection::shared::FilterShared;
use crate::connection::siblings::Siblings;
use crate::connection::waiting::WaitPolicy;
use crate::guest::call::{CallKind, InstanceState, Setup};
use crate::guest::export_calls::{ExportCall, OpenCall, PrepareCall};
use crate::guest::exported::Exported;
use crate::guest::fault::{Fault, FaultKind};
use crate::guest::instance::{Instance, Recipe};

/// The kind under which [`Faults`](crate::connection::log::Faults) counts suspensions of a filter.
const SUSPENDED: &str = "suspended";

/// A filter at one position in the chain.
pub(crate) struct Filter {
    pub(crate) shared: Arc<FilterShared>,
    pub(super) siblings: Arc<Siblings>,
    pub(super) params: Arc<[(String, String)]>,
    /// The same in all versions of the filter.
    model: ThreadModel,
    pub(super) pools: Mutex<Pools>,
    /// Limits the calls that open a connection to half of the instances. Such a call holds its
    /// instance while it waits for the layers below, and those may wait for another connection to
    /// close.
    opens: Semaphore,
    /// Counts instances that could not be created.
    breaker: Breaker,
    /// How often its code was replaced.
    pub(super) reloads: AtomicU64,
    /// The version that the last reload replaced.
    pub(super) replaced: Mutex<Option<Replacement>>,
}

/// The pools of a filter.
pub(super) struct Pools {
    /// For calls that belong to no connection and, without serialize-requests, for new connections.
    pub(super) current: Arc<InstancePool>,
    /// The pools of connections that need one of their own.
    pub(super) own: Vec<Weak<InstancePool>>,
    /// Pools of connections that stay with an earlier version.
    pub(super) earlier: Vec<Weak<InstancePool>>,
}

impl Filter {
    /// Makes and configures the first instance, and asks it for the thread model.
    ///
    /// # Errors
    /// The guest's own line, or what was wrong with it.
    pub(crate) async fn configure(
        shared: Arc<FilterShared>,
        siblings: Siblings,
        recipe: Recipe,
        traits: FilterTraits,
        params: Arc<[(String, String)]>,
    ) -> Result<Arc<Filter>, ConfigError> {
        let (version, first) = Version::first(&shared, Arc::new(recipe), traits, &params).await?;
        let model = version.traits.model;
        let capacity = if model == ThreadModel::Parallel { shared.limits.instances } else { 1 };
        let current = InstancePool::with_first(capacity, &version, first);
        let pools = Mutex::new(Pools { current, own: Vec::new(), earlier: Vec::new() });
        let opens = Semaphore::new((capacity as usize / 2).max(1));
        let (breaker, reloads, replaced) = (Breaker::default(), AtomicU64::new(0), Mutex::default());
        let siblings = Arc::new(siblings);
        Ok(Arc::new(Filter { shared, siblings, params, model, pools, opens, breaker, reloads, replaced }))
    }

    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    /// The version that new connections get.
    ///
    /// # Errors
    /// ESHUTDOWN. It does not happen, because the pool has a version from the start.
    pub(super) fn current(&self) -> Result<(Arc<InstancePool>, Arc<Version>)> {
        let pool = Arc::clone(&lock(&self.pools).current);
        let version = pool.version().ok_or(Errno::Eshutdown)?;
        Ok((pool, version))
    }

    /// What the version exports that new connections get.
    pub(super) fn exported(&self) -> Exported {
        self.current().map_or_else(|_| Exported::default(), |(_, version)| version.traits.exported)
    }

    pub(super) fn model(&self) -> ThreadModel {
        self.model
    }

    /// Drops the instances that were not needed lately ([`InstancePool::free_spare`]).
    pub(super) fn free_spare(&self) {
        let pools = {
            let pools = lock(&self.pools);
            let earlier = pools.earlier.iter().filter_map(Weak::upgrade);
            earlier.chain([Arc::clone(&pools.current)]).collect::<Vec<_>>()
        };
        pools.iter().for_each(|pool| pool.free_spare());
    }

    /// How a version of the filter treats the connections that this pool serves.
    pub(super) fn connection_traits(version: &Version, pool: &InstancePool) -> ConnectionTraits {
        let needs_its_instance = pool.is_single() && !version.traits.is_stateless();
        let FilterTraits { reopens, keeps_state, flushes_others, has_gate, .. } = version.traits;
        ConnectionTraits { reopens, needs_its_instance, keeps_state, flushes_others, has_gate }
    }

    /// # Errors
    /// ESHUTDOWN: the client has left, or the server stops.
    pub(super) async fn turn_to_open(&self, client: &Client) -> Result<SemaphorePermit<'_>> {
        let turn = WaitPolicy::inherited().wait(client, &self.shared.stopping, self.opens.acquire()).await;
        // The semaphore is never closed.
        turn.and_then(std::result::Result::ok).ok_or_else(|| Errno::Eshutdown.into())
    }

    /// The pool that serves a new connection, and its version.
    ///
    /// # Errors
    /// ENOMEM if the connection would need an instance of its own and there are as many as are
    /// allowed.
    pub(super) async fn pool_for_connection(&self) -> Result<(Arc<InstancePool>, Arc<Version>)> {
        if self.model() != ThreadModel::SerializeRequests {
            return self.current();
        }
        let most = self.shared.limits.instances;
        if self.shared.connections.load(Relaxed) >= most {
            let why = format!(
                "{}: {most} connections are open, each with an instance of its own, and no more are allowed \
                 (--filter-limit instances=N)",
                self.name()
            );
            return Err(Error::new(Errno::Enomem, why));
        }
        let own = InstancePool::new(1);
        let version = {
            // While the lock is held, no reload can miss the new pool.
            let mut pools = lock(&self.pools);
            let version = pools.current.version().ok_or(Errno::Eshutdown)?;
            own.switch(&version, || true);
            pools.own.retain(|known| known.strong_count() > 0);
            pools.own.push(Arc::downgrade(&own));
            version
        };
        let mut lease = own.take(None).await?;
        self.fill(&mut lease, &own).await?;
        lease.give_back();
        Ok((own, version))
    }

    /// Puts a fresh, configured instance into a place, and replays the connections whose state was
    /// in the previous instance.
    pub(super) async fn fill(&self, lease: &mut Lease<'_>, pool: &InstancePool) -> Result<()> {
        let pass = self.admit(&self.breaker)?;
        let version = pool.version().ok_or(Errno::Eshutdown)?;
        let made = version.instance(&self.shared, &self.params).await;
        let mut made = made.map_err(|why| {
            // This may be the guest's own line.
            let why = one_line_within(&why, CAUSE);
            self.report("configure", None, &why, None);
            self.count_fault(&self.breaker, pass);
            self.end_if_asked();
            Error::new(Errno::Eio, format!("{}: {why}", self.name()))
        })?;
        self.breaker.success();
        if replays(&version, pool) {
            for conn in pool.tenants() {
                if let Err(fault) = self.replay(&conn, &mut made.instance).await {
                    conn.lose();
                    return Err(self.faulted(PrepareCall::NAME, None, &fault, pool));
                }
            }
        }
        lease.put(made);
        Ok(())
    }

    /// Replays the open of a connection on a fresh instance. If the guest refuses, the connection
    /// is lost.
    async fn replay(&self, conn: &Arc<Connection>, instance: &mut Instance) -> std::result::Result<(), Box<Fault>> {
        if let Some(function) = replay_on(conn, instance).await? {
            tracing::error!("{}: {function} of a lost connection was refused", self.name());
            conn.lose();
        }
        Ok(())
    }

    /// Gives an instance back after a call. If its memory has grown and it holds no state, it is
    /// dropped instead.
    pub(super) fn finish(&self, lease: Lease<'_>) {
        if lease.made().is_some_and(|made| made.is_replaceable && made.instance.is_used_up()) {
            tracing::debug!("{}: an instance's memory has grown: it is replaced", self.name());
            return;
        }
        lease.give_back();
    }

    /// Lets a call through to the guest, unless the guest has failed too often lately.
    ///
    /// # Errors
    /// EIO: the filter is suspended.
    #[inline]
    pub(super) fn admit(&self, breaker: &Breaker) -> Result<Pass> {
        let pass = breaker.lets_through(|| self.shared.pulse.now());
        let pass = pass.or_else(|| breaker.lets_through_after_reload(self.reloads.load(Relaxed)));
        pass.ok_or_else(|| self.left_alone())
    }

    /// [`Filter::admit`] for a call that was let through and has waited since.
    ///
    /// # Errors
    /// EIO: the filter is suspended.
    pub(super) fn admit_again(&self, breaker: &Breaker, pass: Pass) -> Result<()> {
        if breaker.still_lets_through(pass) { Ok(()) } else { Err(self.left_alone()) }
    }

    fn left_alone(&self) -> Error {
        Error::new(Errno::Eio, format!("{}: it keeps failing and is suspended for a while", self.name()))
    }

    /// Counts a fault of the guest's. After that the filter may be suspended.
    pub(super) fn count_fault(&self, breaker: &Breaker, pass: Pass) {
        let Some(pause) = breaker.fault(pass, self.shared.pulse.now()) else { return };
        // A client may cause this repeatedly.
        if let Some(count) = self.shared.faults.count(SUSPENDED) {
            let times = times(count);
            tracing::error!("{}: it keeps failing: requests fail for {pause:?} without asking it{times}", self.name());
        }
    }

    /// Ends the server after a fault, if the operator wants that.
    fn end_if_asked(&self) {
        if let OnFault::Exit(exit) = &self.shared.on_fault {
            exit.notify_one();
        }
    }

    /// Reports that a call on an instance of this pool ended in a fault. The instance is gone.
    /// Returns the error for the request.
    pub(super) fn faulted(&self, what: &str, offset: Option<u64>, fault: &Fault, pool: &InstancePool) -> Error {
        self.report(what, offset, &fault.cause, fault.backtrace.as_deref());
        self.lose_state(pool);
        self.end_if_asked();
        Error::new(Errno::Eio, format!("{}: {what}: {}", self.name(), fault.cause))
    }

    /// The error of a call that ended because all calls together use `buffers-total`. It is not a
    /// fault of the guest, but its instance is gone.
    pub(super) fn out_of_buffers(&self, what: &str, fault: &Fault, pool: &InstancePool) -> Error {
        self.lose_state(pool);
        Error::new(Errno::Enomem, format!("{}: {what}: {}", self.name(), fault.cause))
    }

    /// An instance of this pool is gone. Its connections are lost if their state was in it.
    fn lose_state(&self, pool: &InstancePool) {
        let loses_state = pool.version().is_some_and(|version| version.traits.loses_state_with_instance());
        if loses_state && pool.is_single() {
            for conn in pool.tenants() {
                conn.lose();
            }
        }
    }

    /// Reports an invalid answer of the guest.
    pub(super) fn report_false_answer(&self, what: &str, why: &str) {
        self.report(what, None, why, None);
    }

    fn report(&self, what: &str, offset: Option<u64>, cause: &str, backtrace: Option<&str>) {
        self.shared.counters.faults.fetch_add(1, Relaxed);
        if let Some(count) = self.shared.faults.count(&format!("{what}: {cause}")) {
            let at = offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
            let times = times(count);
            let within = backtrace.map(|frames| format!("; in {frames}")).unwrap_or_default();
            tracing::error!("{}: {what}{at}: {cause}{times}{within}", self.name());
        }
    }

    /// A call for a client that has opened no export.
    ///
    /// # Errors
    /// The guest's own, or ESHUTDOWN if the client leaves first.
    pub(super) async fn ask<E: ExportCall>(&self, below: NextLayer, call: E) -> Result<E::Answer> {
        let (pool, _) = self.current()?;
        let place = WaitPolicy::inherited().wait(below.client(), &self.shared.stopping, pool.take(None)).await;
        let lease = place.unwrap_or_else(|| Err(Errno::Eshutdown.into()))?;
        self.ask_in(&pool, lease, Some(below), call, FaultReport::Log).await
    }

    /// [`Filter::ask`] on a place of this pool that was leased already.
    pub(super) async fn ask_in<E: ExportCall>(
        &self,
        pool: &InstancePool,
        mut lease: Lease<'_>,
        below: Option<NextLayer>,
        call: E,
        report: FaultReport,
    ) -> Result<E::Answer> {
        if lease.instance().is_none() {
            self.fill(&mut lease, pool).await?;
        }
        let is_stateless = lease.made().is_some_and(|made| made.traits().is_stateless());
        let Some(instance) = lease.instance() else { return Err(Errno::Eio.into()) };
        let holds_state = pool.is_single() && !is_stateless;
        let state = if holds_state { InstanceState::Needed } else { InstanceState::Replaceable };
        match instance.serve(Setup { below, instance: state, ..call.setup() }, None, &call).await {
            Ok(answer) => {
                self.finish(lease);
                answer
            }
            Err(fault) if fault.kind == FaultKind::Gone => {
                tracing::debug!("{}: {}: ended, as its client has gone", self.name(), E::NAME);
                Err(Errno::Eshutdown.into())
            }
            Err(fault) => {
                drop(lease);
                Err(match report {
                    FaultReport::Log => self.faulted(E::NAME, call.offset(), &fault, pool),
                    FaultReport::Caller => {
                        Error::new(Errno::Eio, format!("{}: {}: {}", self.name(), E::NAME, fault.cause))
                    }
                })
            }
        }
    }

    /// A call of `lifecycle` before the server listens. Its error is a line for the user.
    pub(super) async fn ready<E>(&self, call: E) -> Result<(), ConfigError>
    where
        E: ExportCall<Answer = std::result::Result<(), String>>,
    {
        if !self.exported().lifecycle {
            return Ok(());
        }
        let answer = async {
            let (pool, _) = self.current()?;
            let lease = pool.take(None).await?;
            self.ask_in(&pool, lease, None, call, FaultReport::Caller).await
        };
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(line)) => Err(refused(self.name(), &line)),
            Err(error) => Err(ConfigError::new(error.context().unwrap_or("a filter failed").to_string())),
        }
    }
}

/// Where the fault of a call is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultReport {
    /// In the log, where it counts as a fault of the filter.
    Log,
    /// To the caller alone. The server does not listen yet, and the user gets the error.
    Caller,
}

/// Whether the state of this pool's connections is in its one instance and can be rebuilt by
/// replaying their opens.
pub(super) fn replays(version: &Version, pool: &InstancePool) -> bool {
    pool.is_single() && version.traits.recovery == wit::Recovery::Replay && version.traits.exported.connection
}

/// Replays the open of a connection on a fresh instance. Returns the function that the guest
/// refused, if it refused one.
pub(super) async fn replay_on(
    conn: &Arc<Connection>,
    instance: &mut Instance,
) -> std::result::Result<Option<&'static str>, Box<Fault>> {
    let open =
        OpenCall { readonly: conn.readonly, exportname: &conn.exportname, tls: conn.client().is_tls(), replayed: true };
    match instance.serve(replay_setup(&open), Some(conn), &open).await? {
        Ok(handle) => {
            conn.handle.store(handle, Relaxed);
            let prepared = instance.serve(replay_setup(&PrepareCall), Some(conn), &PrepareCall).await?;
            Ok(prepared.err().map(|_| PrepareCall::NAME))
        }
        Err(_) => Ok(Some(OpenCall::NAME)),
    }
}

/// The setup of a call that replays a connection on a fresh instance.
fn replay_setup(call: &impl ExportCall) -> Setup {
    Setup { kind: CallKind::Replay, ..call.setup() }
}

/// The count for a message that is not logged each time.
fn times(count: u64) -> String {
    if count > 1 { format!(" ({count} times so far)") } else { String::new() }
}
