//! Calls the alarms of a connection, on behalf of that connection.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::calls::{CallServer, Priority};
use super::rest::rest;
use crate::connection::alarms::AlarmClock;
use crate::connection::bindings::host::types::Scope;
use crate::connection::shared::FilterShared;
use crate::guest::call::CallKind;
use crate::guest::event_calls::AlarmCall;
use crate::guest::metered::Computed;

/// How long an alarm waits before it is tried again, if the filter is suspended because it keeps
/// failing. This is the filter's shortest suspension.
const AGAIN: Duration = Duration::from_millis(10);

/// What a fault is charged as. A fresh instance takes about as long.
pub(super) const FAULT: Duration = Duration::from_millis(1);

/// How an alarm ended.
enum Sounded {
    /// It computed for so long.
    Called(Duration),
    /// It was cancelled, or the connection ends.
    NotNeeded,
    /// The filter cannot be called now.
    Later,
}

impl CallServer {
    /// Calls this connection's alarms from its first one on.
    pub(super) fn enable_alarms(self: &Arc<CallServer>) {
        let server = Arc::downgrade(self);
        let shared = Arc::clone(&self.connection().shared);
        self.connection().alarms.enable(Box::new(move |clock| {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(sound_all(server.clone(), clock, Arc::clone(&shared)));
            }
        }));
    }

    /// Calls the alarm that is due. Finalize waits for it as for a detached operation: it ends when
    /// its client has gone, and keeps nobody waiting for longer than such an operation does.
    async fn sound(&self, clock: &AlarmClock) -> Sounded {
        let conn = self.connection();
        let _running = conn.run_alarm();
        let Ok(pass) = self.admit() else { return Sounded::Later };
        let Ok(lease) = self.lease(Priority::Request, CallKind::Ordinary, Some(pass)).await else {
            return Sounded::Later;
        };
        // A connection that has begun to finalize has no alarms any more.
        let Some(id) = clock.take(conn.shared.pulse.now()) else {
            lease.give_back();
            return Sounded::NotNeeded;
        };
        let computed = Computed::default();
        let call = AlarmCall { scope: Scope::Connection, id };
        match self.serve_on(lease, Some(pass), computed.of(call)).await {
            Ok(()) => Sounded::Called(computed.time()),
            Err(_) => Sounded::Called(computed.time() + FAULT),
        }
    }
}

/// The task of one connection that has set an alarm. It ends with the connection.
async fn sound_all(server: Weak<CallServer>, clock: Arc<AlarmClock>, shared: Arc<FilterShared>) {
    loop {
        let is_due = tokio::select! {
            biased;
            () = shared.stopping.wait() => false,
            is_due = clock.due(&shared.pulse) => is_due,
        };
        if !is_due || !rest(&shared).await {
            return;
        }
        let Some(alive) = server.upgrade() else { return };
        let sounded = alive.sound(&clock).await;
        drop(alive);
        match sounded {
            Sounded::Called(computed) => shared.background.charge(Instant::now(), computed),
            Sounded::NotNeeded => {}
            Sounded::Later => tokio::time::sleep(AGAIN).await,
        }
    }
}
