//! Alarms: times at which a filter wants to be called.
//!
//! There is one [`AlarmClock`] for the server and one for each connection that has set an alarm. A
//! clock has sixteen alarms, so setting one takes no memory. A task waits for the earliest alarm
//! ([`AlarmClock::due`]) and takes it when the call begins ([`AlarmClock::take`]), so that a filter
//! can cancel an alarm until then.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rbdkit_plugin_api::lock;
use tokio::sync::Notify;

use super::pulse::Pulse;

/// Alarms of one connection, and of the server.
pub(crate) const ALARMS: u32 = 16;

/// Alarms of one scope. Times are nanoseconds of [`Pulse::now`].
#[derive(Default)]
pub(crate) struct AlarmClock {
    times: Mutex<Times>,
    changed: Notify,
}

#[derive(Default)]
struct Times {
    at: [Option<u64>; ALARMS as usize],
    stage: Stage,
}

/// Whether alarms may sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not yet: the connection is being opened, or the server starts.
    #[default]
    Before,
    Live,
    Over,
}

impl AlarmClock {
    /// Sets an alarm. A time in the past means `now`, so that alarms sound in the order in which
    /// they were due, and one that is always set to 0 does not come before all others.
    pub(crate) fn set(&self, id: u32, at: u64, now: u64) {
        let mut times = lock(&self.times);
        if times.stage != Stage::Over
            && let Some(alarm) = times.at.get_mut(id as usize)
        {
            *alarm = Some(at.max(now));
            drop(times);
            self.changed.notify_one();
        }
    }

    pub(crate) fn cancel(&self, id: u32) {
        if let Some(alarm) = lock(&self.times).at.get_mut(id as usize) {
            *alarm = None;
        }
    }

    /// Alarms may sound from now on.
    pub(crate) fn begin(&self) {
        let mut times = lock(&self.times);
        if times.stage == Stage::Before {
            times.stage = Stage::Live;
        }
        drop(times);
        self.changed.notify_one();
    }

    /// Forgets all alarms. None sounds from now on.
    pub(crate) fn end(&self) {
        *lock(&self.times) = Times { stage: Stage::Over, ..Times::default() };
        self.changed.notify_one();
    }

    /// Takes the alarm that was due first, if one is due.
    pub(crate) fn take(&self, now: u64) -> Option<u32> {
        let mut times = lock(&self.times);
        let (at, id) = times.earliest()?;
        if at > now {
            return None;
        }
        times.at[id as usize] = None;
        Some(id)
    }

    /// Waits until an alarm is due. False once the clock has ended. Only one task may wait.
    pub(crate) async fn due(&self, pulse: &Pulse) -> bool {
        loop {
            let (stage, earliest) = {
                let times = lock(&self.times);
                (times.stage, times.earliest())
            };
            let wait = match (stage, earliest) {
                (Stage::Over, _) => return false,
                (Stage::Live, Some((at, _))) => at.saturating_sub(pulse.now()),
                _ => u64::MAX,
            };
            if wait == 0 {
                return true;
            }
            let _ = tokio::time::timeout(Duration::from_nanos(wait), self.changed.notified()).await;
        }
    }
}

impl Times {
    fn earliest(&self) -> Option<(u64, u32)> {
        if self.stage != Stage::Live {
            return None;
        }
        self.at.iter().zip(0..).filter_map(|(at, id)| Some(((*at)?, id))).min()
    }
}

/// Starts the task that calls a connection's alarms. It gets the clock.
pub(crate) type StartAlarms = Box<dyn Fn(Arc<AlarmClock>) + Send + Sync>;

/// The alarms of one connection. They cost nothing until one is set.
#[derive(Default)]
pub(crate) struct ConnectionAlarms {
    clock: OnceLock<Arc<AlarmClock>>,
    /// Set if the filter exports `on-alarm`.
    start: OnceLock<StartAlarms>,
    live: Mutex<Stage>,
}

impl ConnectionAlarms {
    /// The filter exports `on-alarm`: `start` is called at the first alarm.
    pub(crate) fn enable(&self, start: StartAlarms) {
        let _ = self.start.set(start);
    }

    pub(crate) fn set(&self, id: u32, at: u64, now: u64) {
        let Some(start) = self.start.get() else { return };
        // Begin and end come either before the clock exists or after it knows of them.
        let stage = lock(&self.live);
        if *stage == Stage::Over {
            return;
        }
        let clock = self.clock.get_or_init(|| {
            let clock = Arc::new(AlarmClock::default());
            if *stage == Stage::Live {
                clock.begin();
            }
            start(Arc::clone(&clock));
            clock
        });
        clock.set(id, at, now);
    }

    pub(crate) fn cancel(&self, id: u32) {
        if let Some(clock) = self.clock.get() {
            clock.cancel(id);
        }
    }

    /// The connection is open.
    pub(crate) fn begin(&self) {
        self.turn(Stage::Live);
    }

    /// The connection begins to end, or could not be opened.
    pub(crate) fn end(&self) {
        self.turn(Stage::Over);
    }

    fn turn(&self, to: Stage) {
        let mut stage = lock(&self.live);
        *stage = to;
        if let Some(clock) = self.clock.get() {
            if to == Stage::Over { clock.end() } else { clock.begin() }
        }
    }
}

impl Drop for ConnectionAlarms {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> AlarmClock {
        let clock = AlarmClock::default();
        clock.begin();
        clock
    }

    #[test]
    fn alarms_sound_in_the_order_of_their_times_and_once() {
        let clock = live();
        for (id, at) in [(0, 30), (1, 10), (15, 20), (2, 10)] {
            clock.set(id, at, 0);
        }
        let order: Vec<_> = std::iter::from_fn(|| clock.take(25)).collect();
        assert_eq!(order, [1, 2, 15]);
        assert_eq!(clock.take(30), Some(0));
        assert_eq!(clock.take(u64::MAX), None);
    }

    #[test]
    fn an_alarm_in_the_past_does_not_come_before_one_that_was_due_already() {
        let clock = live();
        clock.set(5, 10, 0);
        clock.set(0, 0, 20);
        assert_eq!([clock.take(20), clock.take(20)], [Some(5), Some(0)]);
    }

    #[test]
    fn setting_replaces_the_time_and_cancelling_forgets_it() {
        let clock = live();
        clock.set(3, 10, 0);
        clock.set(3, 40, 0);
        assert_eq!(clock.take(39), None);
        clock.set(4, 10, 0);
        clock.cancel(4);
        assert_eq!([clock.take(40), clock.take(40)], [Some(3), None]);
        clock.set(ALARMS, 0, 0);
        assert_eq!(clock.take(u64::MAX), None, "there is no such alarm");
    }

    #[test]
    fn nothing_sounds_before_the_begin_and_after_the_end() {
        let clock = AlarmClock::default();
        clock.set(0, 0, 0);
        assert_eq!(clock.take(1), None);
        clock.begin();
        assert_eq!(clock.take(1), Some(0));
        clock.set(0, 0, 0);
        clock.end();
        clock.set(1, 0, 0);
        clock.begin();
        assert_eq!(clock.take(1), None);
    }

    #[tokio::test]
    async fn waiting_ends_with_an_alarm_that_is_set_meanwhile_and_with_the_end() {
        let pulse = Pulse::new();
        let clock = Arc::new(live());
        clock.set(0, u64::MAX, 0);
        let waiting = tokio::spawn({
            let (clock, pulse) = (Arc::clone(&clock), Arc::clone(&pulse));
            async move {
                let due = clock.due(&pulse).await;
                (due, clock.take(pulse.now()), clock.due(&pulse).await)
            }
        });
        tokio::task::yield_now().await;
        clock.set(7, pulse.now() + 1_000_000, 0);
        while lock(&clock.times).at[7].is_some() {
            tokio::task::yield_now().await;
        }
        clock.end();
        assert_eq!(waiting.await.unwrap(), (true, Some(7), false));
    }
}
