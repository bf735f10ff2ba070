//! How long a call may take, and how much of that is the guest's own.
//!
//! Two accounts a call: what the guest computed, and what went by on the wall without the guest having waited for anybody. Waiting, in an
//! import for next, a lock or a sleep, is on neither: a retry filter below that sleeps for a minute must not end the filter above it. Epochs run
//! on while a guest is suspended; so an epoch that is reached only asks these accounts, and never ends a call by itself.
//!
//! Nothing is measured on the fast path: a call begins with the time of the last tick, and an import that completes at once is
//! excluded only if a tick went by meanwhile, which is right on average.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use wasmtime::UpdateDeadline;

use super::engine::Pulse;

/// A guest that has computed for less than this since it last waited goes on when a tick finds it; longer, and it yields its thread.
/// Most calls take a microsecond: without this one in some thousands would become a task for nothing.
const UNBROKEN: u64 = 2_000_000;

/// Why a call was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Overrun {
    #[error("it computed for longer than {0:?}")]
    Computed(Duration),
    #[error("it took longer than {0:?}")]
    Took(Duration),
}

/// The accounts of one call. Times are nanoseconds of [`Pulse::now`]. Only the call's own task writes; atomics because a yield's future
/// has no other way to it.
pub(super) struct CallClock {
    pulse: Arc<Pulse>,
    began: AtomicU64,
    /// Since when the guest has been computing.
    resumed: AtomicU64,
    computed: AtomicU64,
    waited: AtomicU64,
    may_compute: AtomicU64,
    may_take: AtomicU64,
}

/// One wait of a guest.
pub(super) struct Wait {
    /// The tick before it.
    tick: u64,
    /// When it turned out that it does not complete at once.
    paused: Option<u64>,
}

impl CallClock {
    pub(super) fn new(pulse: Arc<Pulse>) -> Arc<CallClock> {
        let zero = || AtomicU64::new(0);
        Arc::new(CallClock {
            pulse,
            began: zero(),
            resumed: zero(),
            computed: zero(),
            waited: zero(),
            may_compute: zero(),
            may_take: zero(),
        })
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// A call begins.
    pub(super) fn begin(&self, may_compute: Duration, may_take: Duration) {
        let now = self.pulse.coarse();
        self.began.store(now, Relaxed);
        self.resumed.store(now, Relaxed);
        self.computed.store(0, Relaxed);
        self.waited.store(0, Relaxed);
        self.may_compute.store(nanoseconds(may_compute), Relaxed);
        self.may_take.store(nanoseconds(may_take), Relaxed);
    }

    fn add(account: &AtomicU64, time: u64) {
        account.store(account.load(Relaxed).saturating_add(time), Relaxed);
    }

    /// The guest stops computing. Answers the time.
    fn pause(&self) -> u64 {
        let now = self.pulse.now();
        CallClock::add(&self.computed, now.saturating_sub(self.resumed.load(Relaxed)));
        now
    }

    /// The guest goes on after it waited since `from`.
    fn resume(&self, from: u64) {
        let now = self.pulse.now();
        CallClock::add(&self.waited, now.saturating_sub(from));
        self.resumed.store(now, Relaxed);
    }

    /// Something that a guest waits for begins.
    pub(super) fn wait(&self) -> Wait {
        Wait { tick: self.pulse.tick(), paused: None }
    }

    /// It does not complete at once.
    pub(super) fn suspend(&self, wait: &mut Wait) {
        if wait.paused.is_none() {
            wait.paused = Some(self.pause());
        }
    }

    /// It is over.
    pub(super) fn end(&self, wait: &Wait) {
        match wait.paused {
            Some(from) => self.resume(from),
            None => {
                let now = self.pulse.tick();
                if now > wait.tick && wait.tick > 0 {
                    CallClock::add(&self.resumed, now - wait.tick);
                    CallClock::add(&self.waited, now - wait.tick);
                }
            }
        }
    }

    /// Runs what a guest waits for.
    pub(super) async fn waiting<T, F: Future<Output = T>>(&self, start: impl FnOnce() -> F) -> T {
        let mut wait = self.wait();
        let mut future = pin!(start());
        let answer = std::future::poll_fn(|cx| {
            let poll = future.as_mut().poll(cx);
            if poll.is_pending() {
                self.suspend(&mut wait);
            }
            poll
        })
        .await;
        self.end(&wait);
        answer
    }

    /// An epoch was reached while the guest computed: it ends, goes on, or lets others run first.
    pub(super) fn tick(self: &Arc<Self>) -> Result<UpdateDeadline, Overrun> {
        let now = self.pulse.now();
        let stretch = now.saturating_sub(self.resumed.load(Relaxed));
        let computed = self.computed.load(Relaxed).saturating_add(stretch);
        let may_compute = self.may_compute.load(Relaxed);
        if computed > may_compute {
            return Err(Overrun::Computed(Duration::from_nanos(may_compute)));
        }
        let took = now.saturating_sub(self.began.load(Relaxed)).saturating_sub(self.waited.load(Relaxed));
        let may_take = self.may_take.load(Relaxed);
        if took > may_take {
            return Err(Overrun::Took(Duration::from_nanos(may_take)));
        }
        if stretch < UNBROKEN {
            return Ok(UpdateDeadline::Continue(1));
        }
        self.computed.store(computed, Relaxed);
        self.resumed.store(now, Relaxed);
        let clock = Arc::clone(self);
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                // Tokio's own lets sockets and timers have a turn too; without a runtime it just comes back.
                tokio::task::yield_now().await;
                clock.resumed.store(clock.pulse.now(), Relaxed);
            }),
        ))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_waits_for_is_on_neither_account() {
        let clock = CallClock::new(Pulse::new());
        clock.begin(Duration::from_secs(1), Duration::from_secs(1));
        let hour = 3600 * 1_000_000_000;
        let from = clock.pause();
        clock.resume(from);
        // As if the guest had waited for an hour.
        clock.waited.store(hour, Relaxed);
        assert!(clock.tick().is_ok());
        clock.computed.store(2_000_000_000, Relaxed);
        assert_eq!(clock.tick().err(), Some(Overrun::Computed(Duration::from_secs(1))));
    }
}
