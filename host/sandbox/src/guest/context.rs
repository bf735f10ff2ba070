//! The data of a store, which the imports use.
//!
//! A [`Context`] lives as long as its instance. [`Call`] holds what belongs to one call, and is
//! emptied when the call ends.

use std::sync::Arc;

use rbdkit_plugin_api::Error;

use super::call::{Call, Phase};
use super::clock::{CallClock, Overrun};
use super::fault::mistake;
use super::memory::MemoryLimiter;
use super::system_inputs::SystemInputs;
use super::wasi_handles::WasiHandles;
use crate::connection::bindings::host::types as wit;
use crate::connection::conn::Connection;
use crate::connection::next::Next;
use crate::connection::shared::{FilterShared, Purpose};
use crate::connection::trace::Recorder;
use crate::state::ScopeState;

/// The data of a store.
pub(crate) struct Context {
    pub(crate) shared: Arc<FilterShared>,
    pub(crate) clock: Arc<CallClock>,
    pub(crate) memory: MemoryLimiter,
    /// The guest's handles of WASI.
    pub(crate) handles: WasiHandles,
    pub(crate) inputs: SystemInputs,
    pub(crate) call: Call,
    /// The filter exports `on-alarm`.
    pub(crate) hears_alarms: bool,
    /// Records what the guest does. None in a server.
    pub(crate) recorder: Option<Arc<Recorder>>,
}

impl Context {
    pub(crate) fn new(shared: Arc<FilterShared>) -> Context {
        let clock = CallClock::new(Arc::clone(&shared.pulse));
        let memory = MemoryLimiter::new(shared.limits.memory, Arc::clone(&shared.memory_all));
        let call = Call::new(Arc::clone(&shared));
        let inputs = match shared.purpose {
            Purpose::Describe => SystemInputs::Simulated(0),
            Purpose::Serve => SystemInputs::Real,
        };
        let recorder = shared.trace.as_ref().map(Recorder::new);
        Context { shared, clock, memory, handles: WasiHandles::default(), inputs, call, hears_alarms: false, recorder }
    }

    /// Nanoseconds since the server started, for the guest.
    pub(crate) fn now(&mut self) -> u64 {
        self.inputs.monotonic(|| self.clock.pulse().now())
    }

    /// Ends a guest that still computes after its client has gone, if its instance holds no state.
    pub(super) fn still_wanted(&self) -> Result<(), Overrun> {
        let gone = self.call.client().is_some_and(|client| client.is_gone());
        if gone && self.call.may_end() { Err(Overrun::Gone) } else { Ok(()) }
    }

    /// Checks the phase, for functions that answer ENXIO in a wrong phase.
    pub(crate) fn allow(&self, phases: Phase) -> Result<(), wit::Errno> {
        if self.call.phase.is_in(phases) { Ok(()) } else { Err(wit::Errno::Enxio) }
    }

    /// Checks the phase, for functions that cannot answer an error: they trap.
    pub(super) fn require(&self, phases: Phase, what: &str) -> wasmtime::Result<()> {
        if self.call.phase.is_in(phases) { Ok(()) } else { Err(mistake(format!("it called {what} where it may not"))) }
    }

    /// The connection being served.
    pub(crate) fn conn(&self, what: &str) -> wasmtime::Result<&Arc<Connection>> {
        self.require(Phase::OPEN.or(Phase::DATA), what)?;
        self.call.conn.as_ref().ok_or_else(|| mistake(format!("it called {what} where there is no connection")))
    }

    /// The layer below, for a call of `next`.
    pub(crate) fn next(&self) -> Result<&Arc<Next>, wit::Errno> {
        self.allow(Phase::OPEN.or(Phase::DATA))?;
        self.call.next().ok_or(wit::Errno::Enxio)
    }

    /// The state that a scope names.
    pub(crate) fn scope(&self, scope: wit::Scope, what: &str) -> wasmtime::Result<&Arc<ScopeState>> {
        self.conn(what)?.scope(scope).map_err(|error| mistake(error.to_string()))
    }

    /// Converts a layer's answer for the guest. The layer's error is kept with its text, and is
    /// used again if the guest answers the same errno.
    pub(crate) fn answer<T>(&mut self, result: Result<T, Error>) -> Result<T, wit::Errno> {
        result.map_err(|error| {
            let errno = error.errno();
            self.call.last_error = Some(error);
            errno.into()
        })
    }
}
