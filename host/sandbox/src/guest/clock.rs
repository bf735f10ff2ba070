//! How long a call may take, and how much of that is the guest's own.
//!
//! Two accounts a call: what the guest computed, and what went by on the wall without the guest having waited for anybody. Waiting, in an
//! import for next, a lock or a sleep, is on neither: a retry filter below that sleeps for a minute must not end the filter above it. Epochs run
//! on while a guest is suspended; so an epoch that is reached only asks these accounts, and never ends a call by itself.
//!
//! An import that completes at once waits for nobody. Its time is the layers' below and not on the guest's account of computing, but it is on that of
//! the wall: a guest that keeps the layers below busy for ever is ended as well, and so is one that waits more often than any honest one would.
//!
//! Nothing is measured on the fast path: a call begins with the time of the last tick, and an import that completes at once is
//! excluded only if a tick went by meanwhile, which is right on average.
//!
//! **The slow lane.** A guest that has held its thread for longer than [`UNBROKEN`] yields it, and goes on when it is its turn in a lane that is
//! narrower than the threads there are. So whatever guests compute there is a thread for those who do not, and a thousand guests that loop delay
//! nobody but one another. The time in the lane's queue is not computing, but it is on the wall.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::UpdateDeadline;

use crate::connection::engine::{Pulse, TICK};
use crate::connection::limits::Allowance;

/// As many guests compute for long at once: one less than there are processors, so that the server always has one.
static LANE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(processors.saturating_sub(1).max(1)))
});

/// A guest that has held its thread for less than this since it last waited goes on when a tick finds it; longer, and it yields its thread.
/// Most calls take a microsecond: without this one in some thousands would become a task for nothing.
const UNBROKEN: u64 = 2_000_000;

/// Why a call was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Overrun {
    #[error("it computed for longer than {0:?}")]
    Computed(Duration),
    #[error("it took longer than {0:?}")]
    Took(Duration),
    #[error("it waited more than {0} times")]
    Waited(u64),
    #[error("its client has gone")]
    Gone,
}

/// The accounts of one call. Times are nanoseconds of [`Pulse::now`]. Only the call's own task writes; atomics because a yield's future
/// has no other way to it.
pub(crate) struct CallClock {
    pulse: Arc<Pulse>,
    began: AtomicU64,
    /// No tick has found it yet.
    fresh: AtomicBool,
    /// Since when the guest has been computing.
    resumed: AtomicU64,
    /// Since when it has held its thread.
    holding: AtomicU64,
    computed: AtomicU64,
    waited: AtomicU64,
    waits: AtomicU64,
    may_compute: AtomicU64,
    may_take: AtomicU64,
    may_wait: AtomicU64,
    /// Whether `lane` has anything in it.
    in_lane: AtomicBool,
    lane: Mutex<Option<OwnedSemaphorePermit>>,
}

/// One wait of a guest.
pub(crate) struct Wait {
    /// The tick before it.
    tick: u64,
    /// When it turned out that it does not complete at once.
    paused: Option<u64>,
}

impl CallClock {
    pub(crate) fn new(pulse: Arc<Pulse>) -> Arc<CallClock> {
        let zero = || AtomicU64::new(0);
        Arc::new(CallClock {
            pulse,
            began: zero(),
            fresh: AtomicBool::new(false),
            resumed: zero(),
            holding: zero(),
            computed: zero(),
            waited: zero(),
            waits: zero(),
            may_compute: zero(),
            may_take: zero(),
            may_wait: zero(),
            in_lane: AtomicBool::new(false),
            lane: Mutex::default(),
        })
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// A call begins.
    pub(crate) fn begin(&self, may: Allowance) {
        let now = self.pulse.coarse();
        self.began.store(now, Relaxed);
        self.resumed.store(now, Relaxed);
        self.holding.store(now, Relaxed);
        self.fresh.store(true, Relaxed);
        self.computed.store(0, Relaxed);
        self.waited.store(0, Relaxed);
        self.waits.store(0, Relaxed);
        self.may_compute.store(nanoseconds(may.compute), Relaxed);
        self.may_take.store(nanoseconds(may.take), Relaxed);
        self.may_wait.store(may.waits, Relaxed);
    }

    /// A call ends: its turn in the slow lane is over.
    pub(crate) fn over(&self) {
        if self.in_lane.load(Relaxed) {
            self.leave_lane();
        }
    }

    fn leave_lane(&self) {
        self.in_lane.store(false, Relaxed);
        drop(self.lane.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn enter_lane(&self, permit: OwnedSemaphorePermit) {
        *self.lane.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
        self.in_lane.store(true, Relaxed);
    }

    fn add(account: &AtomicU64, time: u64) {
        account.store(account.load(Relaxed).saturating_add(time), Relaxed);
    }

    /// The guest has stopped computing. `polled` is the last tick before it began to wait: the time of whoever was polled since then is not its
    /// own. Answers since when it waits.
    fn pause(&self, polled: u64) -> u64 {
        let not_its_own = if polled > 0 { self.pulse.tick().saturating_sub(polled) } else { 0 };
        let now = self.pulse.now().saturating_sub(not_its_own);
        CallClock::add(&self.computed, now.saturating_sub(self.resumed.load(Relaxed)));
        self.over();
        now
    }

    /// The guest goes on after it waited since `from`.
    fn resume(&self, from: u64) {
        let now = self.pulse.now();
        CallClock::add(&self.waited, now.saturating_sub(from));
        CallClock::add(&self.waits, 1);
        self.resumed.store(now, Relaxed);
        self.holding.store(now, Relaxed);
    }

    /// Something that a guest waits for begins.
    pub(crate) fn wait(&self) -> Wait {
        Wait { tick: self.pulse.tick(), paused: None }
    }

    /// It does not complete at once.
    pub(crate) fn suspend(&self, wait: &mut Wait) {
        if wait.paused.is_none() {
            wait.paused = Some(self.pause(wait.tick));
        }
    }

    /// It is over.
    pub(crate) fn end(&self, wait: &Wait) {
        match wait.paused {
            Some(from) => self.resume(from),
            None => {
                let now = self.pulse.tick();
                if now > wait.tick && wait.tick > 0 {
                    CallClock::add(&self.resumed, now - wait.tick);
                }
            }
        }
    }

    /// Runs what a guest waits for.
    pub(crate) async fn waiting<T, F: Future<Output = T>>(&self, start: impl FnOnce() -> F) -> T {
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
    pub(crate) fn tick(self: &Arc<Self>) -> Result<UpdateDeadline, Overrun> {
        let now = self.pulse.now();
        if self.fresh.swap(false, Relaxed) {
            // The call began somewhere between the last tick and this one, which are far apart where the machine is busy.
            let at_the_earliest = now.saturating_sub(TICK.as_nanos() as u64);
            for since in [&self.began, &self.resumed, &self.holding] {
                since.fetch_max(at_the_earliest, Relaxed);
            }
        }
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
        let may_wait = self.may_wait.load(Relaxed);
        if self.waits.load(Relaxed) > may_wait {
            return Err(Overrun::Waited(may_wait));
        }
        if now.saturating_sub(self.holding.load(Relaxed)) < UNBROKEN {
            return Ok(UpdateDeadline::Continue(1));
        }
        self.computed.store(computed, Relaxed);
        self.over();
        let left = Duration::from_nanos(may_take - took);
        let clock = Arc::clone(self);
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                clock.take_turn(left).await;
                let now = clock.pulse.now();
                clock.resumed.store(now, Relaxed);
                clock.holding.store(now, Relaxed);
            }),
        ))
    }

    /// Waits for a turn in the slow lane, but not for longer than the call may take.
    async fn take_turn(&self, most: Duration) {
        // Lets sockets and timers have a turn too; without a runtime (describe, configure) it just comes back.
        tokio::task::yield_now().await;
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        if let Ok(Ok(permit)) = tokio::time::timeout(most, Arc::clone(&LANE).acquire_owned()).await {
            self.enter_lane(permit);
        }
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
        let second = Duration::from_secs(1);
        clock.begin(Allowance { compute: second, take: second, waits: 10 });
        let hour = 3600 * 1_000_000_000;
        let from = clock.pause(0);
        clock.resume(from);
        // As if the guest had waited for an hour.
        clock.waited.store(hour, Relaxed);
        assert!(clock.tick().is_ok());
        clock.computed.store(2_000_000_000, Relaxed);
        assert_eq!(clock.tick().err(), Some(Overrun::Computed(second)));
    }
}
