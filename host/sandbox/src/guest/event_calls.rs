//! The calls of events: `on-alarm`, `on-watch`, `on-connection` and `on-control`.

use wasmtime::{Result, Store};

use super::call::{Phase, Setup};
use super::context::Context;
use super::export_calls::{ExportCall, Returned};
use super::exports::{ExportedFunctions, interface};
use crate::connection::arrivals::Arrival;
use crate::connection::bindings::host::types as wit;

/// `on-alarm.alarm`.
pub(crate) struct AlarmCall {
    pub(crate) scope: wit::Scope,
    pub(crate) id: u32,
}

impl ExportCall for AlarmCall {
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
        Ok(Ok(interface(&functions.on_alarm)?.call_alarm(store, self.scope, self.id).await?))
    }
}

/// `on-watch.changed`.
pub(crate) struct ChangedCall<'a> {
    pub(crate) param: &'a str,
    pub(crate) nth: u32,
    pub(crate) holds: bool,
}

impl ExportCall for ChangedCall<'_> {
    type Answer = ();
    const NAME: &'static str = "changed";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("param={:?}, nth={}, holds={}", self.param, self.nth, self.holds)
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        let watch = interface(&functions.on_watch)?;
        Ok(Ok(watch.call_changed(store, self.param, self.nth, self.holds).await?))
    }
}

/// `on-connection.opened` or `on-connection.closed`.
pub(crate) struct ArrivalCall(pub(crate) Arrival);

impl ExportCall for ArrivalCall {
    type Answer = ();
    const NAME: &'static str = "on-connection";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("{:?}", self.0).to_lowercase()
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<()>> {
        let interface = interface(&functions.on_connection)?;
        match self.0 {
            Arrival::Opened(id) => interface.call_opened(store, id).await?,
            Arrival::Closed(id) => interface.call_closed(store, id).await?,
        }
        Ok(Ok(()))
    }
}

/// `on-control.received`.
pub(crate) struct ReceivedCall<'a> {
    pub(crate) param: &'a str,
    pub(crate) nth: u32,
    pub(crate) data: &'a [u8],
}

impl ExportCall for ReceivedCall<'_> {
    type Answer = Vec<u8>;
    const NAME: &'static str = "received";
    const PHASE: Phase = Phase::EVENT;

    fn arguments(&self) -> String {
        format!("param={:?}, nth={}, data={} bytes", self.param, self.nth, self.data.len())
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<Vec<u8>>> {
        let control = interface(&functions.on_control)?;
        Ok(Ok(control.call_received(store, self.param, self.nth, self.data).await?))
    }
}
