//! The account for what a filter computes without a request: its calls of `background.next-range`
//! and of events.
//!
//! No client waits for these calls, and no client's leaving ends them, so an idle client would keep
//! a processor busy as long as it is connected. The host measures each call, and makes no other for
//! [`REST`] times as long. The account is the filter's, so many idle clients get no more of it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rbdkit_plugin_api::lock;

/// A filter's background calls take at most one part in 20 of a processor. A normal call takes 10
/// us, after which the next may begin 0.2 ms later. That is soon enough: fetching a range of 2 MiB
/// takes longer.
const REST: u32 = 19;

/// How far events may run ahead of the account: 50 ms of computing. A call takes some 20 us, so
/// that the alarms of a thousand connections are called at once.
const AHEAD: Duration = Duration::from_secs(1);

/// The account of one filter.
#[derive(Debug, Default)]
pub(crate) struct BackgroundAccount {
    /// The next call may not begin before. None: there was none yet.
    free_at: Mutex<Option<Instant>>,
}

impl BackgroundAccount {
    /// How long the next call has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        lock(&self.free_at).map_or(Duration::ZERO, |free_at| free_at.saturating_duration_since(now))
    }

    /// How long the next event has to wait. Events may run ahead of the account by [`AHEAD`].
    pub(crate) fn wait_for_an_event(&self, now: Instant) -> Duration {
        self.wait(now).saturating_sub(AHEAD)
    }

    /// A call that ended at `now` has computed for this long.
    pub(crate) fn charge(&self, now: Instant, computed: Duration) {
        let mut free_at = lock(&self.free_at);
        let began = now.checked_sub(computed).unwrap_or(now);
        let from = free_at.map_or(began, |free_at| free_at.max(began));
        *free_at = from.checked_add(computed.saturating_mul(REST + 1)).or(*free_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_take_one_part_in_twenty_of_the_time() {
        let account = BackgroundAccount::default();
        let (begin, call) = (Instant::now(), Duration::from_millis(800));
        let (mut now, mut computed) = (begin, Duration::ZERO);
        for _ in 0..100 {
            now += account.wait(now) + call;
            computed += call;
            account.charge(now, call);
        }
        now += account.wait(now);
        assert_eq!(now.duration_since(begin), computed * 20);
        // Calls of two connections at once wait for both.
        account.charge(now, call);
        account.charge(now, call);
        assert_eq!(account.wait(now), call * 40);
    }

    #[test]
    fn a_burst_of_events_is_not_delayed_and_an_endless_one_gets_a_twentieth() {
        let account = BackgroundAccount::default();
        let (begin, call) = (Instant::now(), Duration::from_micros(500));
        let mut now = begin;
        for _ in 0..100 {
            assert_eq!(account.wait_for_an_event(now), Duration::ZERO);
            now += call;
            account.charge(now, call);
        }
        for _ in 0..10_000 {
            now += account.wait_for_an_event(now) + call;
            account.charge(now, call);
        }
        let all = now.duration_since(begin).as_secs_f64();
        let share = (call * 10_100).as_secs_f64() / all;
        assert!((0.05..0.0506).contains(&share), "{share}");
    }
}
