//! The task that calls a filter's events without a connection: alarms of the server, changes of
//! what parameters name, and connections that came or went.
//!
//! There is one task for each filter that exports one of them, so that one call runs at a time. It
//! begins before the process is confined, because it opens what it watches, and ends when the
//! server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::alarms::FAULT;
use super::filter::{FaultReport, Filter};
use super::pool::{InstancePool, Lease};
use super::rest::rest;
use crate::connection::arrivals::Arrival;
use crate::connection::bindings::host::types::Scope;
use crate::connection::watches::Watches;
use crate::guest::event_calls::{AlarmCall, ArrivalCall, ChangedCall, Computed};
use crate::guest::export_calls::ExportCall;

/// What happened.
enum Event {
    /// An alarm of the server is due.
    Alarm,
    /// This watched thing has changed.
    Changed(usize),
    Arrived(Arrival),
}

impl Filter {
    /// Starts the task, unless it runs already or the filter exports no events. Call it within a
    /// runtime.
    pub(super) fn start_events(self: &Arc<Self>) {
        let exported = self.exported();
        if !(exported.on_alarm || exported.on_watch || exported.on_connection)
            || self.shared.events_started.swap(true, Relaxed)
        {
            return;
        }
        let watches = Watches::new(&self.shared.files);
        self.shared.alarms.begin();
        let filter = Arc::clone(self);
        self.shared.detached_tasks.spawn(async move { filter.call_events(watches).await });
    }

    async fn call_events(self: Arc<Self>, mut watches: Watches) {
        let shared = Arc::clone(&self.shared);
        let stopping = shared.stopping.wait();
        tokio::pin!(stopping);
        loop {
            // Of several things that have happened, select takes any, so none keeps others waiting
            // for ever.
            let event = tokio::select! {
                () = &mut stopping => break,
                true = shared.alarms.due(&shared.pulse), if self.exported().on_alarm => Event::Alarm,
                n = watches.next(&shared.files), if self.exported().on_watch => Event::Changed(n),
                arrival = shared.arrivals.next(), if self.exported().on_connection => Event::Arrived(arrival),
            };
            if !rest(&shared).await {
                break;
            }
            let Ok((pool, _)) = self.current() else { break };
            let lease = tokio::select! {
                () = &mut stopping => break,
                lease = pool.take(None) => lease,
            };
            let Ok(lease) = lease else { break };
            if shared.stopping.is_set() {
                lease.give_back();
                break;
            }
            let computed = self.call_event(&pool, lease, event, &mut watches).await;
            shared.background.charge(Instant::now(), computed);
        }
        shared.alarms.end();
    }

    /// Calls the guest. Returns how long it computed.
    async fn call_event(
        &self,
        pool: &Arc<InstancePool>,
        lease: Lease<'_>,
        event: Event,
        watches: &mut Watches,
    ) -> Duration {
        let computed = &Computed::default();
        let called = match event {
            Event::Alarm => match self.shared.alarms.take(self.shared.pulse.now()) {
                Some(id) => self.event(pool, lease, AlarmCall { scope: Scope::Server, id, computed }).await,
                // It was cancelled.
                None => {
                    lease.give_back();
                    true
                }
            },
            Event::Changed(n) => {
                let (param, nth, holds) = watches.take(n, &self.shared.files);
                self.event(pool, lease, ChangedCall { param, nth, holds, computed }).await
            }
            Event::Arrived(arrival) => self.event(pool, lease, ArrivalCall { arrival, computed }).await,
        };
        if called { computed.time() } else { computed.time() + FAULT }
    }

    /// One call. False: it ended in a fault, which is in the log.
    async fn event<E: ExportCall>(&self, pool: &InstancePool, lease: Lease<'_>, call: E) -> bool {
        self.ask_in(pool, lease, None, call, FaultReport::Log).await.is_ok()
    }
}
