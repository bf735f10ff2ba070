//! What becomes of a filter that fails again and again.
//!
//! A fault costs its own request, and a fresh instance takes over in microseconds. A filter that fails every time would make the server do
//! nothing but make instances, so faults in a row, with no success in between, are counted: a few are forgiven, then requests are answered EIO for a
//! while without asking the guest, twice as long after each further fault. When the time is over one request is let through; if it
//! succeeds all is forgotten.
//!
//! There is one count a connection, so that a client who can make a filter fail slows itself and nobody else, and one for what belongs to no
//! connection: making instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

/// What the operator wants to happen after a fault (`--filter-on-fault`). In each case the request fails: there is no passing by a filter that failed.
#[derive(Clone, Debug, Default)]
pub enum OnFault {
    /// Nothing more.
    #[default]
    Error,
    /// The connection that it happened in is of no more use: all its requests fail from then on, and it is closed.
    Disconnect,
    /// The server ends as after a signal; whoever waits for this is told.
    Exit(Arc<Notify>),
}

/// So many faults in a row are forgiven.
const FORGIVEN: u32 = 8;

/// How long the guest is left alone first, and at most.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(5);

/// Faults in a row, and until when nobody is let through. Times are nanoseconds of [`Pulse::now`](super::engine::Pulse::now).
#[derive(Debug, Default)]
pub(super) struct Breaker {
    in_a_row: AtomicU32,
    closed_until: AtomicU64,
}

impl Breaker {
    /// Whether the guest may be asked. One load as long as nothing fails.
    pub(super) fn lets_through(&self, now: impl Fn() -> u64) -> bool {
        let until = self.closed_until.load(Relaxed);
        if until == 0 {
            return true;
        }
        let now = now();
        // Who comes first after the time tries; for the others it goes on as long again.
        let again = now.saturating_add(nanoseconds(pause(self.in_a_row.load(Relaxed))));
        now >= until && self.closed_until.compare_exchange(until, again, Relaxed, Relaxed).is_ok()
    }

    /// A call succeeded.
    pub(super) fn success(&self) {
        if self.in_a_row.load(Relaxed) > 0 {
            self.in_a_row.store(0, Relaxed);
            self.closed_until.store(0, Relaxed);
        }
    }

    /// A call ended in a fault. How long the guest is left alone, if that has just begun.
    pub(super) fn fault(&self, now: u64) -> Option<Duration> {
        let in_a_row = self.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        if in_a_row < FORGIVEN {
            return None;
        }
        let pause = pause(in_a_row);
        self.closed_until.store(now.saturating_add(nanoseconds(pause)).max(1), Relaxed);
        (in_a_row == FORGIVEN).then_some(pause)
    }
}

fn pause(in_a_row: u32) -> Duration {
    let doubled = in_a_row.saturating_sub(FORGIVEN).min(20);
    FIRST.saturating_mul(1 << doubled).min(LONGEST)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn some_faults_are_forgiven_and_then_it_takes_longer_each_time() {
        let breaker = Breaker::default();
        for _ in 1..FORGIVEN {
            assert_eq!(breaker.fault(0), None);
            assert!(breaker.lets_through(|| 0));
        }
        assert_eq!(breaker.fault(0), Some(FIRST));
        assert!(!breaker.lets_through(|| 9 * MS));
        assert!(breaker.lets_through(|| 10 * MS), "one tries");
        assert!(!breaker.lets_through(|| 10 * MS), "and only one");
        assert_eq!(breaker.fault(10 * MS), None);
        assert!(!breaker.lets_through(|| 29 * MS));
        assert!(breaker.lets_through(|| 30 * MS));
        breaker.success();
        assert!(breaker.lets_through(|| 30 * MS) && breaker.lets_through(|| 30 * MS));
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
