//! A token bucket in two words, so that it fits into a slot of the host and any instance can take from it.
//!
//! The words are not a level and a time but the time at which the bucket will be full again, if nobody takes from it until then: taking moves it
//! on. That is one number to change, and nothing has to be filled while nobody looks.

/// A second.
pub const SECOND: u64 = 1_000_000_000;

/// Nanoseconds that `bits` take at a rate in bits a second; none at a rate of 0, which means no limit.
pub fn cost(bits: u64, rate: u64) -> u64 {
    let ns = u128::from(bits) * u128::from(SECOND);
    ns.checked_div(rate.into()).map_or(0, |ns| u64::try_from(ns).unwrap_or(u64::MAX))
}

/// Takes what costs `cost` nanoseconds at the time `now` from a bucket that will be full at `full` and holds `capacity` nanoseconds' worth.
/// Answers when it will be full then, and how long to wait before using what was taken.
pub fn take(full: u64, now: u64, capacity: u64, cost: u64) -> (u64, u64) {
    let full = full.max(now).saturating_add(cost);
    (full, full.saturating_sub(now).saturating_sub(capacity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_bits_by_rate() {
        assert_eq!(cost(1_000, 1_000), SECOND);
        assert_eq!(cost(64 << 23, 1 << 29), SECOND);
        assert_eq!(cost(8, 0), 0);
        assert_eq!(cost(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn a_full_bucket_lets_a_burst_pass_and_then_as_much_as_runs_in() {
        let capacity = 2 * SECOND;
        let (mut full, mut now) = (0, 1000 * SECOND);
        let mut waits = vec![];
        for _ in 0..5 {
            let (next, wait) = take(full, now, capacity, SECOND);
            full = next;
            now += wait;
            waits.push(wait / SECOND);
        }
        assert_eq!(waits, [0, 0, 1, 1, 1]);
    }

    #[test]
    fn a_pause_fills_the_bucket_up_to_its_capacity() {
        let capacity = 2 * SECOND;
        let (full, wait) = take(0, 10 * SECOND, capacity, 5 * SECOND);
        assert_eq!(wait, 3 * SECOND);
        // Long after it is full again a burst is no longer than the capacity.
        let (full, wait) = take(full, 1000 * SECOND, capacity, 2 * SECOND);
        assert_eq!(wait, 0);
        assert_eq!(take(full, 1000 * SECOND, capacity, SECOND).1, SECOND);
    }

    #[test]
    fn many_who_take_at_once_wait_one_after_the_other() {
        let (mut full, now) = (0, 5 * SECOND);
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let (next, wait) = take(full, now, 0, SECOND);
                full = next;
                wait / SECOND
            })
            .collect();
        assert_eq!(waits, [1, 2, 3, 4]);
    }

    #[test]
    fn numbers_beyond_counting_do_no_harm() {
        assert_eq!(take(u64::MAX, 0, 0, u64::MAX), (u64::MAX, u64::MAX));
    }
}
