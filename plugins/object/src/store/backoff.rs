//! How long to wait before a request is tried again.

use std::time::Duration;

/// The first wait, unless tests have another one.
pub(crate) const FIRST: Duration = Duration::from_millis(50);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// The wait after the failure of this number, which begins at 0. It doubles from one failure to the
/// next. A random half of it is left out, so that clients of one store do not come back all at
/// once.
pub(crate) fn wait(first: Duration, failures: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.min(10)).min(LONGEST);
    let random = getrandom::u64().unwrap_or(u64::MAX / 2);
    let half = full.as_nanos() as u64 / 2;
    Duration::from_nanos(half + random % (half + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_differ_and_end_at_five_seconds() {
        for failures in 0..40 {
            let full = FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST);
            let waits: Vec<Duration> = (0..20).map(|_| wait(FIRST, failures)).collect();
            assert!(waits.iter().all(|wait| *wait <= full && *wait >= full / 2), "{failures}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
        }
    }
}
