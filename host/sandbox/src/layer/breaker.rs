//! The circuit breaker of a filter that fails again and again.
//!
//! A fault costs its own request, and a fresh instance takes over in microseconds. If a filter
//! failed every time, the server would do nothing but create instances. So the breaker counts
//! faults in a row, with no success in between. The first seven have no further effect. At the
//! eighth the breaker opens: requests fail with EIO for a while without calling the guest, and for
//! twice as long after each further fault. When the time is over, one request is let through. If it
//! succeeds, the count starts again. The faults of all calls that were running when the breaker
//! opened count as one. So one short failure does not suspend the filter for long, even if the
//! client has many requests in flight.
//!
//! Each connection has a breaker, so that a client that makes a filter fail slows only itself. The
//! filter has one more for creating instances, which belongs to no connection.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The number of faults in a row at which the breaker opens.
const MAX_FAULTS: u32 = 8;

/// How long the breaker is open the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How long it is open at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Counts faults in a row. Times are nanoseconds of
/// [`Pulse::now`](crate::connection::pulse::Pulse::now).
#[derive(Debug, Default)]
pub(super) struct Breaker {
    faults_in_a_row: AtomicU32,
    /// How often it has opened since the last success.
    times_opened: AtomicU32,
    /// The time at which it lets a call through again. 0: it is not open.
    open_until: AtomicU64,
    /// How often the filter's code had been replaced when that last closed the breaker.
    reloads: AtomicU64,
}

/// What a call gets when it is let through. When the breaker opens, many calls may have a pass.
/// Those that still wait for an instance fail without calling the guest, and the faults of those
/// that run are not counted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass(u64);

impl Breaker {
    /// Lets a call through if the breaker is closed. This is one load as long as nothing fails.
    #[inline]
    pub(super) fn lets_through(&self, now: impl Fn() -> u64) -> Option<Pass> {
        let until = self.open_until.load(Relaxed);
        if until == 0 {
            return Some(Pass(0));
        }
        let now = now();
        // The first call after that time tries. For all others the breaker stays open for the same
        // time again.
        let again = now.saturating_add(nanoseconds(pause(self.times_opened.load(Relaxed))));
        let first = now >= until && self.open_until.compare_exchange(until, again, Relaxed, Relaxed).is_ok();
        first.then_some(Pass(again))
    }

    /// Lets a call through that [`Breaker::lets_through`] did not, once after each reload of the
    /// filter. The faults were those of other code. `reloads` is how often it was reloaded.
    pub(super) fn lets_through_after_reload(&self, reloads: u64) -> Option<Pass> {
        if self.reloads.swap(reloads, Relaxed) == reloads {
            return None;
        }
        self.success();
        Some(Pass(0))
    }

    /// Whether a call that was let through, and has waited since, may still call the guest.
    pub(super) fn still_lets_through(&self, pass: Pass) -> bool {
        let until = self.open_until.load(Relaxed);
        until == 0 || until == pass.0
    }

    /// A call succeeded.
    #[inline]
    pub(super) fn success(&self) {
        if self.faults_in_a_row.load(Relaxed) > 0 {
            self.faults_in_a_row.store(0, Relaxed);
            self.times_opened.store(0, Relaxed);
            self.open_until.store(0, Relaxed);
        }
    }

    /// A call ended in a fault. Returns how long the breaker is open, if it has just opened for the
    /// first time since the last success.
    pub(super) fn fault(&self, pass: Pass, now: u64) -> Option<Duration> {
        let until = self.open_until.load(Relaxed);
        if until != 0 && until != pass.0 {
            return None;
        }
        if self.faults_in_a_row.fetch_add(1, Relaxed).saturating_add(1) < MAX_FAULTS {
            return None;
        }
        let opened = self.times_opened.load(Relaxed);
        let pause = pause(opened.saturating_add(1));
        let next = now.saturating_add(nanoseconds(pause)).max(1);
        // If several calls fail at once, only one of them opens it.
        let first = self.open_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok();
        if first {
            self.times_opened.store(opened.saturating_add(1), Relaxed);
        }
        (first && opened == 0).then_some(pause)
    }
}

/// How long it stays open the `nth` time, from 1 on.
fn pause(nth: u32) -> Duration {
    let doubled = nth.saturating_sub(1).min(20);
    FIRST_PAUSE.saturating_mul(1 << doubled).min(LONGEST_PAUSE)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A call that is let through and fails.
    fn fails(breaker: &Breaker, now: u64) -> Option<Duration> {
        breaker.fault(breaker.lets_through(|| now).expect("it is let through"), now)
    }

    #[test]
    fn it_opens_after_some_faults_and_for_longer_each_time() {
        let breaker = Breaker::default();
        for _ in 1..MAX_FAULTS {
            assert_eq!(fails(&breaker, 0), None);
        }
        assert_eq!(fails(&breaker, 0), Some(FIRST_PAUSE));
        assert_eq!(breaker.lets_through(|| 9 * MS), None);
        let one = breaker.lets_through(|| 10 * MS).expect("one tries");
        assert_eq!(breaker.lets_through(|| 10 * MS), None, "and only one");
        assert_eq!(breaker.fault(one, 10 * MS), None);
        assert_eq!(breaker.lets_through(|| 29 * MS), None);
        assert!(breaker.lets_through(|| 30 * MS).is_some());
        breaker.success();
        assert!((0..2).all(|_| breaker.lets_through(|| 30 * MS).is_some()));
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn calls_under_way_when_it_opens_count_once_and_do_not_ask_any_more() {
        let breaker = Breaker::default();
        let under_way: Vec<Pass> = (0..128).filter_map(|_| breaker.lets_through(|| 0)).collect();
        let pauses: Vec<Duration> = under_way.iter().filter_map(|pass| breaker.fault(*pass, MS)).collect();
        assert_eq!(pauses, [FIRST_PAUSE]);
        assert!(under_way.iter().all(|pass| !breaker.still_lets_through(*pass)));
        let one = breaker.lets_through(|| 11 * MS).expect("the time is over");
        assert!(breaker.still_lets_through(one));
        // A late fault, while another call tries.
        assert_eq!(breaker.fault(under_way[0], 12 * MS), None);
        assert!(breaker.still_lets_through(one));
        assert_eq!(breaker.fault(one, 12 * MS), None);
        assert_eq!(breaker.lets_through(|| 31 * MS), None);
        assert!(breaker.lets_through(|| 32 * MS).is_some());
        breaker.success();
        assert!(under_way.iter().all(|pass| breaker.still_lets_through(*pass)));
    }
}
