//! The task that calls a filter's events without a connection: alarms of the server, changes of
//! what parameters name, connections that came or went, and commands of control sockets.
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
use crate::connection::commands::{Command, MAX_COMMAND};
use crate::connection::control;
use crate::connection::watches::Watches;
use crate::guest::event_calls::{AlarmCall, ArrivalCall, ChangedCall, ReceivedCall};
use crate::guest::export_calls::ExportCall;
use crate::guest::metered::Computed;

/// What happened.
enum Event {
    /// An alarm of the server is due.
    Alarm,
    /// This watched thing has changed.
    Changed(usize),
    Arrived(Arrival),
    Received(Command),
}

impl Filter {
    /// Starts the task, unless it runs already or the filter exports no events. Call it within a
    /// runtime.
    pub(super) fn start_events(self: &Arc<Self>) {
        let exported = self.exported();
        if !(exported.on_alarm || exported.on_watch || exported.on_connection || exported.on_control)
            || self.shared.events_started.swap(true, Relaxed)
        {
            return;
        }
        let watches = Watches::new(&self.shared.files);
        self.shared.alarms.begin();
        control::serve(&self.shared);
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
            let exported = self.exported();
            let event = tokio::select! {
                () = &mut stopping => break,
                true = shared.alarms.due(&shared.pulse), if exported.on_alarm => Event::Alarm,
                n = watches.next(), if exported.on_watch => Event::Changed(n),
                arrival = shared.arrivals.next(), if exported.on_connection => Event::Arrived(arrival),
                command = shared.commands.next(), if exported.on_control => Event::Received(command),
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
                Some(id) => self.event(pool, lease, computed.of(AlarmCall { scope: Scope::Server, id })).await,
                // It was cancelled.
                None => {
                    lease.give_back();
                    true
                }
            },
            Event::Changed(n) => match watches.take(n) {
                Some((param, nth, holds)) => {
                    self.event(pool, lease, computed.of(ChangedCall { param, nth, holds })).await
                }
                // It has changed back.
                None => {
                    lease.give_back();
                    true
                }
            },
            Event::Arrived(arrival) => self.event(pool, lease, computed.of(ArrivalCall(arrival))).await,
            Event::Received(command) => self.received(pool, lease, command, computed).await,
        };
        if called { computed.time() } else { computed.time() + FAULT }
    }

    /// Calls the filter with a command, and passes its answer on. False: it ended in a fault.
    async fn received(&self, pool: &InstancePool, lease: Lease<'_>, command: Command, computed: &Computed) -> bool {
        let Command { param, nth, data, answer } = command;
        let call = computed.of(ReceivedCall { param: &param, nth, data: &data });
        let Ok(answered) = self.ask_in(pool, lease, None, call, FaultReport::Log).await else { return false };
        if answered.len() > MAX_COMMAND {
            let why =
                format!("an answer of {} bytes (at most {MAX_COMMAND}): its client is disconnected", answered.len());
            self.report_false_answer(ReceivedCall::NAME, &why);
            return false;
        }
        // Its client may have gone.
        let _ = answer.send(answered);
        true
    }

    /// One call. False: it ended in a fault, which is in the log.
    async fn event<E: ExportCall>(&self, pool: &InstancePool, lease: Lease<'_>, call: E) -> bool {
        self.ask_in(pool, lease, None, call, FaultReport::Log).await.is_ok()
    }
}
