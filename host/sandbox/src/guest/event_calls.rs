//! The calls of events: `on-alarm`, `on-watch`, `on-connection` and `on-control`. They leave how
//! long they computed, because a filter's events share an account
//! ([`crate::connection::background`]).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use wasmtime::{Result, Store};

use super::call::{Phase, Setup};
use super::context::Context;
use super::export_calls::{ExportCall, Returned};
use super::exports::{ExportedFunctions, interface};
use crate::connection::arrivals::Arrival;
use crate::connection::bindings::host::types as wit;

/// How many nanoseconds a call took without waiting.
#[derive(Default)]
pub(crate) struct Computed(AtomicU64);

impl Computed {
    /// Notes the time of a call that has ended.
    fn note(&self, started: Instant, store: &Store<Context>) {
        let computed = started.elapsed().saturating_sub(store.data().clock.waited());
        self.0.store(u64::try_from(computed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn time(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.load(Relaxed))
    }
}

/// `on-alarm.alarm`.
pub(crate) struct AlarmCall<'a> {
    pub(crate) scope: wit::Scope,
    pub(crate) id: u32,
    pub(crate) computed: &'a Computed,
}

impl ExportCall for AlarmCall<'_> {
    type Answer = ();
    const NAME: &'static str = "alarm";
    const PHASE: Phase = Phase::EVENT;

    fn setup(&self) -> Setup {
        // An alarm of a connection is a call of that connection.
        Setup::new(if self.scope == wit::Scope::Server { Phase::EVENT } else { Phase::DATA })
    }

    fn arguments(&self) -> String {
        format!("scope={}, id={}", if self.scope == wit::Scope::Server { "server" } else { "connection" }, self.id)
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        let started = Instant::now();
        let called = interface(&functions.on_alarm)?.call_alarm(&mut *store, self.scope, self.id).await;
        self.computed.note(started, store);
        Ok(Ok(called?))
    }
}

/// `on-watch.changed`.
pub(crate) struct ChangedCall<'a> {
    pub(crate) param: &'a str,
    pub(crate) nth: u32,
    pub(crate) holds: bool,
    pub(crate) computed: &'a Computed,
}

impl ExportCall for ChangedCall<'_> {
    type Answer = ();
    const NAME: &'static str = "changed";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("param={:?}, nth={}, holds={}", self.param, self.nth, self.holds)
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        let started = Instant::now();
        let watch = interface(&functions.on_watch)?;
        let called = watch.call_changed(&mut *store, self.param, self.nth, self.holds).await;
        self.computed.note(started, store);
        Ok(Ok(called?))
    }
}

/// `on-connection.opened` or `on-connection.closed`.
pub(crate) struct ArrivalCall<'a> {
    pub(crate) arrival: Arrival,
    pub(crate) computed: &'a Computed,
}

impl ExportCall for ArrivalCall<'_> {
    type Answer = ();
    const NAME: &'static str = "on-connection";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("{:?}", self.arrival).to_lowercase()
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        let started = Instant::now();
        let interface = interface(&functions.on_connection)?;
        let called = match self.arrival {
            Arrival::Opened(id) => interface.call_opened(&mut *store, id).await,
            Arrival::Closed(id) => interface.call_closed(&mut *store, id).await,
        };
        self.computed.note(started, store);
        Ok(Ok(called?))
    }
}

/// `on-control.received`.
pub(crate) struct ReceivedCall<'a> {
    pub(crate) param: &'a str,
    pub(crate) nth: u32,
    pub(crate) data: &'a [u8],
    pub(crate) computed: &'a Computed,
}

impl ExportCall for ReceivedCall<'_> {
    type Answer = Vec<u8>;
    const NAME: &'static str = "received";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("param={:?}, nth={}, data={} bytes", self.param, self.nth, self.data.len())
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Vec<u8>>> {
        let started = Instant::now();
        let control = interface(&functions.on_control)?;
        let called = control.call_received(&mut *store, self.param, self.nth, self.data).await;
        self.computed.note(started, store);
        Ok(Ok(called?))
    }
}
