//! A configured filter: the layer that the chain sees, its instances, and what becomes of faults.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rbdkit_plugin_api::{BoxFuture, ConfigError, Errno, Error, ExportEntry, Handle, OpenArgs, Result, ThreadModel};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::breaker::{Breaker, OnFault, Pass};
use super::conn::{Conn, Opened};
use super::pool::{Instances, Lease};
use crate::connection::bindings::host::types as wit;
use crate::connection::shared::Shared;
use crate::guest::context::{Phase, Setup, checked_exports, protocol_string};
use crate::guest::instance::{Ask, Fault, Instance, Recipe, Reply};
use rbdkit_chain::{Below, Layer};

/// When the server stops it waits so long for layers that end on their own.
const END: Duration = Duration::from_secs(10);

/// What [`Faults`](crate::connection::shared::Faults) counts its being left alone as.
const LEFT_ALONE: &str = "left alone";

/// Which operations a filter exports, in the form that every request asks.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each interface of the contract")]
pub(crate) struct Exported {
    /// What it does not export passes by untouched.
    pub(crate) transparent: bool,
    pub(crate) threading: bool,
    pub(crate) lifecycle: bool,
    pub(crate) admission: bool,
    pub(crate) names: bool,
    pub(crate) connection: bool,
    pub(crate) info: bool,
    pub(crate) features: bool,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    pub(crate) flushes: bool,
    pub(crate) trims: bool,
    pub(crate) zeroes: bool,
    pub(crate) mapping: bool,
    pub(crate) caching: bool,
    pub(crate) background: bool,
}

/// Tasks that outlive the connection that they are of.
#[derive(Default)]
pub(crate) struct Detached {
    running: AtomicUsize,
    none: Notify,
}

/// Counts down when the task is over, also if it panics.
pub(crate) struct Running(Arc<Detached>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl Detached {
    /// Counts something that begins, until what is answered is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    /// Whether nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the process is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let running = self.begin();
            runtime.spawn(async move {
                task.await;
                drop(running);
            });
        }
    }

    pub(crate) async fn ended(&self) {
        loop {
            let notified = self.none.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.is_idle() {
                return;
            }
            notified.await;
        }
    }
}

/// A filter in its place of the chain.
pub(crate) struct Filter {
    pub(crate) shared: Arc<Shared>,
    recipe: Recipe,
    exported: Exported,
    recovery: wit::Recovery,
    params: Arc<[(String, String)]>,
    model: ThreadModel,
    /// The filter's instances; with serialize-requests only the one that serves what belongs to no connection.
    instances: Arc<Instances>,
    live: Mutex<Vec<Weak<Conn>>>,
    /// A guest that opens holds its instance while it waits for the layers below, and those may wait for another connection to close: some
    /// instances are kept from that.
    opens: Semaphore,
    detached: Arc<Detached>,
    /// Whether it may replace its next layer.
    reopens: bool,
    /// Of instances that cannot be made.
    breaker: Breaker,
}

/// What a component says of itself that the layer goes by.
pub(crate) struct Nature {
    pub(crate) exported: Exported,
    pub(crate) model: ThreadModel,
    pub(crate) recovery: wit::Recovery,
    pub(crate) reopens: bool,
}

impl Filter {
    /// Makes and configures the first instance, and learns the thread model.
    ///
    /// # Errors
    /// The guest's own line, or what was wrong with it.
    pub(crate) async fn configure(
        shared: Arc<Shared>,
        recipe: Recipe,
        nature: Nature,
        params: Arc<[(String, String)]>,
    ) -> Result<Arc<Filter>, ConfigError> {
        let name = shared.name.clone();
        let mut first = configured(&recipe, &shared, &params).await.map_err(|why| refused(&name, &why))?;
        let mut model = nature.model;
        if nature.exported.threading {
            match first.serve(Setup::new(Phase::CONFIGURE), None, &Ask::ThreadModel).await.1 {
                Ok(Reply::Model(answer)) => model = answer.into(),
                Ok(_) => {}
                Err(fault) => return Err(refused(&name, &format!("thread-model: {}", fault.cause))),
            }
        }
        let most = if model == ThreadModel::Parallel { shared.limits.instances } else { 1 };
        let instances = Instances::new(most);
        if let Some(mut lease) = instances.try_take(None) {
            lease.put(Box::new(first));
            lease.give_back();
        }
        Ok(Arc::new(Filter {
            shared,
            recipe,
            exported: nature.exported,
            recovery: nature.recovery,
            params,
            model,
            instances,
            live: Mutex::default(),
            opens: Semaphore::new((most as usize / 2).max(1)),
            detached: Arc::default(),
            reopens: nature.reopens,
            breaker: Breaker::default(),
        }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn exported(&self) -> &Exported {
        &self.exported
    }

    /// Whether an instance's own memory holds what connections need.
    pub(crate) fn holds_state(&self) -> bool {
        self.recovery != wit::Recovery::Stateless
    }

    pub(crate) fn detached(&self) -> &Arc<Detached> {
        &self.detached
    }

    pub(crate) fn reopens(&self) -> bool {
        self.reopens
    }

    pub(crate) async fn turn_to_open(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.opens.acquire().await.ok()
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Conn>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, conn: &Arc<Conn>) {
        let mut live = self.live();
        live.retain(|known| known.strong_count() > 0);
        live.push(Arc::downgrade(conn));
    }

    pub(crate) fn remove(&self, conn: &Arc<Conn>) {
        self.live().retain(|known| known.as_ptr() != Arc::as_ptr(conn));
    }

    /// The connections whose state is in the one instance of `instances`, oldest first.
    fn connections_of(&self, instances: &Arc<Instances>) -> Vec<Arc<Conn>> {
        let live = self.live();
        let mut all: Vec<Arc<Conn>> = live.iter().filter_map(Weak::upgrade).collect();
        drop(live);
        all.retain(|conn| conn.is_live() && Arc::ptr_eq(conn.instances(), instances));
        all.sort_by_key(|conn| conn.id());
        all
    }

    /// The instances that a new connection uses.
    ///
    /// # Errors
    /// ENOMEM if it would need one of its own and there are as many as are allowed.
    pub(crate) async fn instances_for_connection(&self) -> Result<Arc<Instances>> {
        if self.model != ThreadModel::SerializeRequests {
            return Ok(Arc::clone(&self.instances));
        }
        let most = self.shared.limits.instances;
        if self.shared.connections.load(Ordering::Relaxed) >= most {
            let why = format!(
                "{}: {most} connections are open, each with an instance of its own, and no more are allowed \
                 (--filter-limit instances=N)",
                self.name()
            );
            return Err(Error::new(Errno::Enomem, why));
        }
        let own = Instances::new(1);
        let mut lease = own.take(None).await?;
        self.fill(&mut lease, &own).await?;
        lease.give_back();
        Ok(own)
    }

    /// Puts a fresh, configured instance into a place, and tells it of the connections whose state the one before it held.
    pub(crate) async fn fill(&self, lease: &mut Lease<'_>, instances: &Arc<Instances>) -> Result<()> {
        let pass = self.admit(&self.breaker)?;
        let made = configured(&self.recipe, &self.shared, &self.params).await;
        let mut instance = Box::new(made.map_err(|why| {
            // The guest's own line perhaps.
            let why = crate::connection::shared::printable(&why, crate::connection::shared::CAUSE);
            self.report("configure", None, &why, None);
            self.count_fault(&self.breaker, pass);
            self.end_if_asked();
            Error::new(Errno::Eio, format!("{}: {why}", self.name()))
        })?);
        self.breaker.success();
        if instances.is_single() && self.recovery == wit::Recovery::Replay && self.exported.connection {
            for conn in self.connections_of(instances) {
                if let Err(fault) = conn.replay(&mut instance).await {
                    conn.lose();
                    return Err(self.faulted(Ask::Prepare.name(), None, &fault, instances));
                }
            }
        }
        lease.put(instance);
        Ok(())
    }

    /// Gives an instance back after a call, unless its memory has grown and nothing is lost with it.
    pub(crate) fn finish(&self, mut lease: Lease<'_>) {
        let replaceable = !instances_hold_state(self.recovery) || self.model == ThreadModel::Parallel;
        if replaceable && lease.instance().is_some_and(|instance| instance.has_grown()) {
            tracing::debug!("{}: an instance's memory has grown: it is replaced", self.name());
            return;
        }
        lease.give_back();
    }

    /// Whether the guest is asked, after what it did before.
    pub(crate) fn admit(&self, breaker: &Breaker) -> Result<Pass> {
        breaker.lets_through(|| self.shared.pulse.now()).ok_or_else(|| self.left_alone())
    }

    /// The same for who was let through and has waited since.
    pub(crate) fn admit_again(&self, breaker: &Breaker, pass: Pass) -> Result<()> {
        if breaker.still_lets_through(pass) { Ok(()) } else { Err(self.left_alone()) }
    }

    fn left_alone(&self) -> Error {
        Error::new(Errno::Eio, format!("{}: it keeps failing and is left alone for a while", self.name()))
    }

    /// A fault of the guest's: it may be left alone for a while.
    pub(crate) fn count_fault(&self, breaker: &Breaker, pass: Pass) {
        let Some(pause) = breaker.fault(pass, self.shared.pulse.now()) else { return };
        // A client may bring it about again and again.
        if let Some(count) = self.shared.faults.count(LEFT_ALONE) {
            let times = times(count);
            tracing::error!("{}: it keeps failing: requests fail for {pause:?} without asking it{times}", self.name());
        }
    }

    /// After a fault, if the operator wants that.
    fn end_if_asked(&self) {
        if let OnFault::Exit(told) = &self.shared.on_fault {
            told.notify_one();
        }
    }

    /// A call ended in a fault; its instance is gone. The error for the request.
    pub(crate) fn faulted(&self, what: &str, offset: Option<u64>, fault: &Fault, instances: &Arc<Instances>) -> Error {
        self.report(what, offset, &fault.cause, fault.backtrace.as_deref());
        if self.recovery == wit::Recovery::Lost && instances.is_single() {
            for conn in self.connections_of(instances) {
                conn.lose();
            }
        }
        self.end_if_asked();
        Error::new(Errno::Eio, format!("{}: {what}: {}", self.name(), fault.cause))
    }

    /// A guest's answer that cannot be.
    pub(crate) fn lied(&self, what: &str, error: &Error) {
        self.report(what, None, error.context().unwrap_or_default(), None);
    }

    fn report(&self, what: &str, offset: Option<u64>, cause: &str, backtrace: Option<&str>) {
        self.shared.counters.faults.fetch_add(1, Ordering::Relaxed);
        if let Some(count) = self.shared.faults.count(&format!("{what}: {cause}")) {
            let at = offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
            let times = times(count);
            let within = backtrace.map(|frames| format!("; in {frames}")).unwrap_or_default();
            tracing::error!("{}: {what}{at}: {cause}{times}{within}", self.name());
        }
    }

    /// A call that belongs to no connection.
    async fn ask(&self, phase: Phase, below: Option<Below>, ask: Ask) -> Result<Reply> {
        let lease = self.instances.take(None).await?;
        self.ask_in(lease, phase, below, ask).await
    }

    async fn ask_in(&self, mut lease: Lease<'_>, phase: Phase, below: Option<Below>, ask: Ask) -> Result<Reply> {
        if lease.instance().is_none() {
            self.fill(&mut lease, &self.instances).await?;
        }
        let Some(instance) = lease.instance() else { return Err(Errno::Eio.into()) };
        let setup = Setup { below, ..Setup::new(phase) };
        match instance.serve(setup, None, &ask).await.1 {
            Ok(reply) => {
                self.finish(lease);
                Ok(reply)
            }
            Err(fault) => {
                drop(lease);
                // Before the server listens the user is told, and nobody else has to be.
                if phase == Phase::READY && !matches!(ask, Ask::Cleanup) {
                    return Err(Error::new(Errno::Eio, format!("{}: {}: {}", self.name(), ask.name(), fault.cause)));
                }
                Err(self.faulted(ask.name(), ask.offset(), &fault, &self.instances))
            }
        }
    }

    /// A call of `lifecycle`, whose error is a line for the user.
    async fn ready(&self, ask: Ask) -> Result<(), ConfigError> {
        if !self.exported.lifecycle {
            return Ok(());
        }
        match self.ask(Phase::READY, None, ask).await {
            Ok(Reply::Line(Err(line))) => Err(refused(self.name(), &line)),
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::new(error.context().unwrap_or("a filter failed").to_string())),
        }
    }
}

fn instances_hold_state(recovery: wit::Recovery) -> bool {
    recovery == wit::Recovery::Lost
}

fn refused(name: &str, line: &str) -> ConfigError {
    let line = crate::connection::shared::printable(line, 1000);
    ConfigError::new(format!("{name}: {line}"))
}

/// How often something was counted that is not said each time.
fn times(count: u64) -> String {
    if count > 1 { format!(" ({count} times so far)") } else { String::new() }
}

/// A fresh instance that was told the parameters.
async fn configured(
    recipe: &Recipe,
    shared: &Arc<Shared>,
    params: &Arc<[(String, String)]>,
) -> std::result::Result<Instance, String> {
    let mut instance =
        recipe.instantiate(shared).await.map_err(|fault| format!("cannot be started: {}", fault.cause))?;
    let ask = Ask::Configure(Arc::clone(params));
    match instance.serve(Setup::new(Phase::CONFIGURE), None, &ask).await.1 {
        Ok(Reply::Line(Err(line))) => return Err(line),
        Ok(_) => {}
        Err(fault) => return Err(format!("configure: {}", fault.cause)),
    }
    instance.settle();
    Ok(instance)
}

/// [`Filter`] behind the `Arc` that its connections share.
pub(crate) struct FilterLayer(pub(crate) Arc<Filter>);

impl Layer for FilterLayer {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn thread_model(&self) -> ThreadModel {
        self.0.model
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.0.shared.files.opened_anew()
    }

    fn get_ready(&self, below: ThreadModel) -> BoxFuture<'_, Result<(), ConfigError>> {
        let _ = self.0.shared.below.set(below);
        Box::pin(self.0.ready(Ask::GetReady))
    }

    fn after_fork(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(self.0.ready(Ask::AfterFork))
    }

    fn preconnect(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.0.exported.admission {
                return next.preconnect(readonly).await;
            }
            self.0.ask(Phase::BEFORE, Some(next), Ask::Preconnect { readonly }).await?.done()
        })
    }

    fn list_exports(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            if !self.0.exported.names {
                return next.list_exports(readonly).await;
            }
            let ask = Ask::ListExports { readonly, tls: next.client().tls };
            match self.0.ask(Phase::BEFORE, Some(next), ask).await? {
                Reply::Exports(list) => checked_exports(list?),
                _ => Err(Errno::Eio.into()),
            }
        })
    }

    fn default_export(&self, readonly: bool, next: Below) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move {
            if !self.0.exported.names {
                return next.default_export(readonly).await;
            }
            let ask = Ask::DefaultExport { readonly, tls: next.client().tls };
            match self.0.ask(Phase::BEFORE, Some(next), ask).await? {
                Reply::Name(name) => Ok(protocol_string(&name?)?.to_string()),
                _ => Err(Errno::Eio.into()),
            }
        })
    }

    fn open(&self, args: OpenArgs, next: Below) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let filter = Arc::clone(&self.0);
        Box::pin(async move {
            let conn = Conn::open(filter, args, next).await?;
            Ok(Arc::new(Opened(conn)) as Arc<dyn Handle>)
        })
    }

    fn free_spare(&self) {
        self.0.instances.free_spare();
    }

    fn cleanup(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if tokio::time::timeout(END, self.0.detached.ended()).await.is_err() {
                tracing::error!("{}: layers below it have not ended in {END:?}", self.0.name());
            }
            if self.0.exported.lifecycle {
                match tokio::time::timeout(END, self.0.instances.take(None)).await {
                    // A fault is logged where it happens, and nothing can be done about it any more.
                    Ok(Ok(lease)) => drop(self.0.ask_in(lease, Phase::READY, None, Ask::Cleanup).await),
                    _ => tracing::error!("{}: no cleanup: its instances are busy after {END:?}", self.0.name()),
                }
            }
            self.0.shared.state.shutdown();
            self.0.shared.log_counters("at the end");
        })
    }
}
