//! A token bucket in one number, so that it fits into a slot of the host and any instance can take
//! from it.
//!
//! The number is the time at which the bucket will be full again if nobody takes from it until
//! then. Taking moves that time later. So a request changes one number, and no timer has to fill
//! the bucket.

/// A second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// How many nanoseconds `bits` take at `rate` bits per second: 0 at a rate of 0, which means no
/// limit.
pub fn cost(bits: u64, rate: u64) -> u64 {
    let ns = u128::from(bits) * u128::from(SECOND);
    ns.checked_div(rate.into()).map_or(0, |ns| u64::try_from(ns).unwrap_or(u64::MAX))
}

/// Takes tokens from a bucket at the time `now`. The bucket will be full at the time `full` and
/// holds tokens for `capacity` nanoseconds; the tokens taken are worth `cost` nanoseconds. Returns
/// the new time at which it will be full, and how long the caller must wait before it uses the
/// tokens.
pub fn take(full: u64, now: u64, capacity: u64, cost: u64) -> (u64, u64) {
    let full = full.max(now).saturating_add(cost);
    (full, full.saturating_sub(now).saturating_sub(capacity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_bits_divided_by_rate() {
        assert_eq!(cost(1_000, 1_000), SECOND);
        assert_eq!(cost(64 << 23, 1 << 29), SECOND);
        assert_eq!(cost(8, 0), 0);
        assert_eq!(cost(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn a_full_bucket_lets_a_burst_pass_and_then_limits_to_the_rate() {
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
        // However long the pause was, the burst is limited to the capacity.
        let (full, wait) = take(full, 1000 * SECOND, capacity, 2 * SECOND);
        assert_eq!(wait, 0);
        assert_eq!(take(full, 1000 * SECOND, capacity, SECOND).1, SECOND);
    }

    #[test]
    fn requests_at_the_same_time_wait_one_after_the_other() {
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
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(take(u64::MAX, 0, 0, u64::MAX), (u64::MAX, u64::MAX));
    }
}
