//! How long the steps of all requests took together, which `-v` shows when the server ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use curl::easy::Easy2;

/// The steps of a request, in order.
const STEPS: [&str; 6] =
    ["name resolution", "connection", "TLS negotiation", "preparation", "first byte received", "data transfer"];

/// The sums, of any thread.
#[derive(Debug, Default)]
pub(crate) struct Times {
    requests: AtomicU64,
    /// Microseconds of each of [`STEPS`].
    steps: [AtomicU64; STEPS.len()],
}

impl Times {
    /// Adds those of a transfer that has ended.
    pub(crate) fn add<H>(&self, easy: &Easy2<H>) {
        let until = [
            easy.namelookup_time(),
            easy.connect_time(),
            easy.appconnect_time(),
            easy.pretransfer_time(),
            easy.starttransfer_time(),
            easy.total_time(),
        ];
        self.requests.fetch_add(1, Ordering::Relaxed);
        let taken = taken(until.map(Result::unwrap_or_default));
        for (sum, time) in self.steps.iter().zip(taken) {
            sum.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Writes them to the log.
    pub(crate) fn log(&self) {
        tracing::debug!("curl: times of {} requests:", self.requests.load(Ordering::Relaxed));
        for (name, sum) in STEPS.iter().zip(&self.steps) {
            let seconds = Duration::from_micros(sum.load(Ordering::Relaxed)).as_secs_f64();
            tracing::debug!("curl: {name:<20}: {seconds:12.6} s");
        }
    }
}

/// How long each step took, from the times since the beginning at which each had ended. A step that
/// a request does not have, such as connecting over a connection that exists, has an end of 0.
fn taken(until: [Duration; STEPS.len()]) -> [Duration; STEPS.len()] {
    let mut before = Duration::ZERO;
    until.map(|end| {
        let time = end.saturating_sub(before);
        before = before.max(end);
        time
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_from_the_end_of_the_one_before() {
        let seconds = |until: [u64; 6]| taken(until.map(Duration::from_secs)).map(|time| time.as_secs());
        assert_eq!(seconds([1, 3, 6, 7, 9, 20]), [1, 2, 3, 1, 2, 11]);
        // Over a connection that exists, and without TLS.
        assert_eq!(seconds([0, 0, 0, 1, 4, 9]), [0, 0, 0, 1, 3, 5]);
        assert_eq!(seconds([2, 5, 0, 6, 6, 6]), [2, 3, 0, 1, 0, 0]);
    }
}
