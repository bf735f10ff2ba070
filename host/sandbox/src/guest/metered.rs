//! Calls that no client waits for: how long they compute is charged to the filter's account
//! ([`crate::connection::background`]).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use wasmtime::{Result, Store};

use super::call::{CallKind, Phase, Setup};
use super::context::Context;
use super::export_calls::{ExportCall, Returned};
use super::exports::ExportedFunctions;

/// How many nanoseconds a call took without waiting.
#[derive(Default)]
pub(crate) struct Computed(AtomicU64);

impl Computed {
    /// A call that leaves here how long it computed, also if it ends in a fault.
    pub(crate) fn of<E: ExportCall>(&self, call: E) -> Metered<'_, E> {
        Metered { call, computed: self }
    }

    /// How long the call computed. Zero if it did not begin.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

/// See [`Computed::of`].
pub(crate) struct Metered<'a, E> {
    call: E,
    computed: &'a Computed,
}

impl<E: ExportCall> ExportCall for Metered<'_, E> {
    type Answer = E::Answer;
    const NAME: &'static str = E::NAME;
    const PHASE: Phase = E::PHASE;
    const KIND: CallKind = E::KIND;

    fn setup(&self) -> Setup {
        self.call.setup()
    }

    fn offset(&self) -> Option<u64> {
        self.call.offset()
    }

    fn arguments(&self) -> String {
        self.call.arguments()
    }

    async fn run(&self, functions: &ExportedFunctions, store: &mut Store<Context>) -> Result<Returned<E::Answer>> {
        let started = Instant::now();
        let answer = self.call.run(functions, &mut *store).await;
        let computed = started.elapsed().saturating_sub(store.data().clock.waited());
        self.computed.0.store(u64::try_from(computed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        answer
    }
}
