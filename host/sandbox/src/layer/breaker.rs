//! What becomes of a filter that fails again and again.
//!
//! A fault costs its own request, and a fresh instance takes over in microseconds. A filter that fails every time would make the server do
//! nothing but make instances, so faults in a row, with no success in between, are counted: a few are forgiven, then requests are answered EIO for a
//! while without asking the guest, twice as long after each further fault. When the time is over one request is let through; if it
//! succeeds all is forgotten. What was under way when it closed counts as one: a deep client that meets one bad moment is not shut out for long.
//!
//! There is one count a connection, so that a client who can make a filter fail slows itself and nobody else, and one for what belongs to no
//! connection: making instances.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// So many faults in a row are forgiven.
const FORGIVEN: u32 = 8;

/// How long the guest is left alone first, and at most.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(5);

/// Faults in a row, and until when nobody is let through. Times are nanoseconds of [`Pulse::now`](crate::connection::engine::Pulse::now).
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    in_a_row: AtomicU32,
    /// How often it has closed since the last success.
    closed: AtomicU32,
    closed_until: AtomicU64,
}

/// What a call was let through with. Many may be under way when the breaker closes: those of them that wait are not asked any more, and
/// the faults of those that run say nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass(u64);

impl Breaker {
    /// Whether the guest may be asked. One load as long as nothing fails.
    pub(crate) fn lets_through(&self, now: impl Fn() -> u64) -> Option<Pass> {
        let until = self.closed_until.load(Relaxed);
        if until == 0 {
            return Some(Pass(0));
        }
        let now = now();
        // Who comes first after the time tries; for the others it goes on as long again.
        let again = now.saturating_add(nanoseconds(pause(self.closed.load(Relaxed))));
        let first = now >= until && self.closed_until.compare_exchange(until, again, Relaxed, Relaxed).is_ok();
        first.then_some(Pass(again))
    }

    /// Whether one who was let through, and has waited since, may still ask.
    pub(crate) fn still_lets_through(&self, pass: Pass) -> bool {
        let until = self.closed_until.load(Relaxed);
        until == 0 || until == pass.0
    }

    /// A call succeeded.
    pub(crate) fn success(&self) {
        if self.in_a_row.load(Relaxed) > 0 {
            self.in_a_row.store(0, Relaxed);
            self.closed.store(0, Relaxed);
            self.closed_until.store(0, Relaxed);
        }
    }

    /// A call ended in a fault. How long the guest is left alone, if that has just begun.
    pub(crate) fn fault(&self, pass: Pass, now: u64) -> Option<Duration> {
        let until = self.closed_until.load(Relaxed);
        if until != 0 && until != pass.0 {
            return None;
        }
        if self.in_a_row.fetch_add(1, Relaxed).saturating_add(1) < FORGIVEN {
            return None;
        }
        let closed = self.closed.load(Relaxed);
        let pause = pause(closed.saturating_add(1));
        let next = now.saturating_add(nanoseconds(pause)).max(1);
        // Of those that fail at once one closes it.
        let first = self.closed_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok();
        if first {
            self.closed.store(closed.saturating_add(1), Relaxed);
        }
        (first && closed == 0).then_some(pause)
    }
}

/// How long it stays closed the `nth` time, from 1 on.
fn pause(nth: u32) -> Duration {
    let doubled = nth.saturating_sub(1).min(20);
    FIRST.saturating_mul(1 << doubled).min(LONGEST)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A call from its begin to its fault.
    fn fails(breaker: &Breaker, now: u64) -> Option<Duration> {
        breaker.fault(breaker.lets_through(|| now).expect("it is let through"), now)
    }

    #[test]
    fn some_faults_are_forgiven_and_then_it_takes_longer_each_time() {
        let breaker = Breaker::default();
        for _ in 1..FORGIVEN {
            assert_eq!(fails(&breaker, 0), None);
        }
        assert_eq!(fails(&breaker, 0), Some(FIRST));
        assert_eq!(breaker.lets_through(|| 9 * MS), None);
        let one = breaker.lets_through(|| 10 * MS).expect("one tries");
        assert_eq!(breaker.lets_through(|| 10 * MS), None, "and only one");
        assert_eq!(breaker.fault(one, 10 * MS), None);
        assert_eq!(breaker.lets_through(|| 29 * MS), None);
        assert!(breaker.lets_through(|| 30 * MS).is_some());
        breaker.success();
        assert!((0..2).all(|_| breaker.lets_through(|| 30 * MS).is_some()));
        assert_eq!(pause(u32::MAX), LONGEST);
    }

    #[test]
    fn those_that_were_under_way_when_it_closed_make_it_no_longer_and_do_not_ask_any_more() {
        let breaker = Breaker::default();
        let under_way: Vec<Pass> = (0..128).filter_map(|_| breaker.lets_through(|| 0)).collect();
        let told: Vec<Duration> = under_way.iter().filter_map(|pass| breaker.fault(*pass, MS)).collect();
        assert_eq!(told, [FIRST]);
        assert!(under_way.iter().all(|pass| !breaker.still_lets_through(*pass)));
        let one = breaker.lets_through(|| 11 * MS).expect("the time is over");
        assert!(breaker.still_lets_through(one));
        // Late, while another tries.
        assert_eq!(breaker.fault(under_way[0], 12 * MS), None);
        assert!(breaker.still_lets_through(one));
        assert_eq!(breaker.fault(one, 12 * MS), None);
        assert_eq!(breaker.lets_through(|| 31 * MS), None);
        assert!(breaker.lets_through(|| 32 * MS).is_some());
        breaker.success();
        assert!(under_way.iter().all(|pass| breaker.still_lets_through(*pass)));
    }
}
