//! Measures how long a call takes, and how much of that is the guest's own time.
//!
//! A call has two times: computing time (limit `cpu`), and elapsed time without waiting (limit
//! `wall`). Time in which an import waits for next, a lock or a sleep counts as neither: a retry
//! filter below that sleeps for a minute must not end the filter above it. Epochs advance even
//! while a guest is suspended. So a new epoch only checks these times, and never ends a call by
//! itself.
//!
//! An import that completes at once has not waited. The layers below used its time, so it is not
//! computing time, but it is elapsed time. So a guest that keeps the layers below busy for ever is
//! ended too. A third limit (`waits`) ends a guest that waits far more often than any normal one.
//!
//! The fast path reads no clock. A call begins with the time of the last tick. The time of an
//! import that completes at once is excluded only if a tick passed during it, which is right on
//! average.
//!
//! **A busy machine.** A thread that the kernel does not run has not computed. A guest that
//! computes looks at the clock at every tick. Between two looks it is charged for no more than its
//! thread's processor time, and before the first one for no more than [`UNSEEN`]. Otherwise other
//! programs could make it reach its limit.
//!
//! **The compute queue.** A guest that has held its thread for longer than [`MAX_UNBROKEN`] yields
//! it and waits for a compute permit. There are fewer permits than threads. So one thread is always
//! left for other requests, and a thousand guests that loop delay only one another. Waiting for a
//! permit is elapsed time, not computing time.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use rbdkit_plugin_api::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::UpdateDeadline;

use crate::connection::limits::Allowance;
use crate::connection::pulse::{Pulse, TICK};

/// The number of guests that may compute for long at the same time: one less than there are
/// processors, so that one is always left for the server.
static COMPUTE_PERMITS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(processors.saturating_sub(1).max(1)))
});

/// Nanoseconds that a guest may hold its thread without waiting. At the first tick after that it
/// yields the thread. Most calls take a microsecond. Without this limit, one call in some thousands
/// would yield for no reason, because a tick came during it.
const MAX_UNBROKEN: u64 = 2_000_000;

/// The most nanoseconds that count as computed from the time when a guest got its thread to its
/// first look at the clock, or from its last look to a wait: two ticks.
const UNSEEN: u64 = 2 * TICK.as_nanos() as u64;

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
    #[error("the copies of changed payloads take all of buffers-total (--filter-limit buffers-total=SIZE)")]
    Buffers,
}

/// The times of one call, in nanoseconds of [`Pulse::now`]. Only the call's own task writes them.
/// They are atomics because the future that a guest yields to can reach them only through a shared
/// reference.
pub(crate) struct CallClock {
    pulse: Arc<Pulse>,
    began: AtomicU64,
    /// Whether no tick has come since the call began.
    fresh: AtomicBool,
    /// The time up to which the guest's computing is in `computed`, or when it last began.
    resumed: AtomicU64,
    /// The thread's processor time at the last look at the clock. 0 if the guest has not looked
    /// since it got its thread.
    processor: AtomicU64,
    /// When the guest last got its thread.
    holding: AtomicU64,
    computed: AtomicU64,
    waited: AtomicU64,
    waits: AtomicU64,
    may_compute: AtomicU64,
    may_take: AtomicU64,
    may_wait: AtomicU64,
    /// Whether `permit` holds a permit.
    has_permit: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

/// One wait of a guest.
pub(crate) struct Wait {
    /// The time of the last tick before the wait.
    tick: u64,
    /// When the wait turned out not to complete at once.
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
            processor: zero(),
            holding: zero(),
            computed: zero(),
            waited: zero(),
            waits: zero(),
            may_compute: zero(),
            may_take: zero(),
            may_wait: zero(),
            has_permit: AtomicBool::new(false),
            permit: Mutex::default(),
        })
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// A call begins.
    #[inline]
    pub(crate) fn begin(&self, may: Allowance) {
        let now = self.pulse.coarse();
        self.began.store(now, Relaxed);
        self.resumed.store(now, Relaxed);
        self.holding.store(now, Relaxed);
        self.processor.store(0, Relaxed);
        self.fresh.store(true, Relaxed);
        self.computed.store(0, Relaxed);
        self.waited.store(0, Relaxed);
        self.waits.store(0, Relaxed);
        self.may_compute.store(nanoseconds(may.compute), Relaxed);
        self.may_take.store(nanoseconds(may.take), Relaxed);
        self.may_wait.store(may.waits, Relaxed);
    }

    /// A call ends: it gives its compute permit back.
    #[inline]
    pub(crate) fn over(&self) {
        if self.has_permit.load(Relaxed) {
            self.give_permit();
        }
    }

    fn give_permit(&self) {
        self.has_permit.store(false, Relaxed);
        drop(lock(&self.permit).take());
    }

    fn keep_permit(&self, permit: OwnedSemaphorePermit) {
        *lock(&self.permit) = Some(permit);
        self.has_permit.store(true, Relaxed);
    }

    fn add(account: &AtomicU64, time: u64) {
        account.store(account.load(Relaxed).saturating_add(time), Relaxed);
    }

    /// The guest has stopped computing. `polled` is the last tick before it began to wait: the time
    /// since then was spent polling the operation that it waits for, and is not its own. Returns
    /// the time since which it waits.
    fn pause(&self, polled: u64) -> u64 {
        let not_its_own = if polled > 0 { self.pulse.tick().saturating_sub(polled) } else { 0 };
        let now = self.pulse.now().saturating_sub(not_its_own);
        CallClock::add(&self.computed, now.saturating_sub(self.resumed.load(Relaxed)).min(UNSEEN));
        self.over();
        now
    }

    /// How long the call has waited so far.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Relaxed))
    }

    /// The guest goes on after it waited since `from`.
    fn resume(&self, from: u64) {
        let now = self.pulse.now();
        CallClock::add(&self.waited, now.saturating_sub(from));
        CallClock::add(&self.waits, 1);
        self.hold(now);
    }

    /// The guest gets a thread, perhaps another one.
    fn hold(&self, now: u64) {
        self.resumed.store(now, Relaxed);
        self.holding.store(now, Relaxed);
        self.processor.store(0, Relaxed);
    }

    /// A guest begins to wait for an operation.
    pub(crate) fn wait(&self) -> Wait {
        Wait { tick: self.pulse.tick(), paused: None }
    }

    /// The operation does not complete at once.
    pub(super) fn suspend(&self, wait: &mut Wait) {
        if wait.paused.is_none() {
            wait.paused = Some(self.pause(wait.tick));
        }
    }

    /// The operation has ended.
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

    /// Adds what the guest has computed since its last look at the clock. `processor` is its
    /// thread's processor time.
    fn charge(&self, now: u64, processor: u64) {
        let before = self.processor.swap(processor, Relaxed);
        let most = if before == 0 { UNSEEN } else { processor.saturating_sub(before) };
        let elapsed = now.saturating_sub(self.resumed.load(Relaxed));
        CallClock::add(&self.computed, elapsed.min(most));
        self.resumed.fetch_max(now, Relaxed);
    }

    /// A new epoch began while the guest computed. Decides whether the guest ends, goes on, or
    /// yields first.
    pub(crate) fn tick(self: &Arc<Self>) -> Result<UpdateDeadline, Overrun> {
        let now = self.pulse.now();
        if self.fresh.swap(false, Relaxed) {
            // The call began at some time between the last two ticks, which are far apart on a busy
            // machine.
            let at_the_earliest = now.saturating_sub(TICK.as_nanos() as u64);
            for since in [&self.began, &self.resumed, &self.holding] {
                since.fetch_max(at_the_earliest, Relaxed);
            }
        }
        self.charge(now, processor_time());
        let computed = self.computed.load(Relaxed);
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
        if now.saturating_sub(self.holding.load(Relaxed)) < MAX_UNBROKEN {
            return Ok(UpdateDeadline::Continue(1));
        }
        self.over();
        let left = Duration::from_nanos(may_take - took);
        let clock = Arc::clone(self);
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                clock.wait_for_permit(left).await;
                clock.hold(clock.pulse.now());
            }),
        ))
    }

    /// Waits for a compute permit, but not for longer than the call may take.
    async fn wait_for_permit(&self, most: Duration) {
        // This lets sockets and timers run too. Without a runtime (describe, configure) it returns
        // at once.
        tokio::task::yield_now().await;
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        if let Ok(Ok(permit)) = tokio::time::timeout(most, Arc::clone(&COMPUTE_PERMITS).acquire_owned()).await {
            self.keep_permit(permit);
        }
    }
}

/// The processor time of this thread, in nanoseconds. It is more than 0 when a guest has run.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_a_guest_waits_is_on_neither_account() {
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

    #[test]
    fn time_in_which_the_thread_does_not_run_is_not_computing_time() {
        let clock = CallClock::new(Pulse::new());
        let (second, tick) = (1_000_000_000, TICK.as_nanos() as u64);
        let computed = || clock.computed.load(Relaxed);
        clock.hold(second);
        // Until the first look at the clock the thread may have stood still.
        clock.charge(5 * second, 70);
        assert_eq!(computed(), UNSEEN);
        // Then the thread's own time counts.
        clock.charge(6 * second, 70 + tick);
        assert_eq!(computed(), UNSEEN + tick);
        // A guest that computes all the time is charged for all of it.
        clock.charge(6 * second + tick, 70 + 2 * tick);
        assert_eq!(computed(), UNSEEN + 2 * tick);
        // What is excluded because an import completed at once is not counted.
        clock.resumed.store(6 * second + 4 * tick, Relaxed);
        clock.charge(6 * second + 4 * tick, 70 + 5 * tick);
        assert_eq!(computed(), UNSEEN + 2 * tick);
        // Another thread has another processor time.
        clock.hold(7 * second);
        clock.charge(7 * second + tick, 5);
        assert_eq!(computed(), UNSEEN + 3 * tick);
    }
}
