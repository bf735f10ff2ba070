//! How fast lines may come into the log.
//!
//! What a client or a guest can bring about again and again must not fill the disk that the log is on, nor hide what else is said there. So lines are
//! admitted at a rate, with some at once, and those that were not are counted, to be told with the next one that is.

use std::sync::Mutex;
use std::time::Instant;

use crate::lock::lock;

/// So many lines a second, and so many at once.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    at_once: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    lines: f64,
    filled: Instant,
    dropped: u64,
}

impl Rate {
    /// At first all that may come at once is there.
    #[must_use]
    pub fn new(per_second: u32, at_once: u32) -> Rate {
        let at_once = f64::from(at_once);
        let bucket = Mutex::new(Bucket { lines: at_once, filled: Instant::now(), dropped: 0 });
        Rate { per_second: f64::from(per_second), at_once, bucket }
    }

    /// Whether there is room for a line, and how many were dropped since the last one.
    pub fn admit(&self) -> Option<u64> {
        let mut bucket = self.bucket();
        let now = Instant::now();
        let grown = bucket.lines + now.duration_since(bucket.filled).as_secs_f64() * self.per_second;
        bucket.lines = grown.min(self.at_once);
        bucket.filled = now;
        if bucket.lines < 1.0 {
            bucket.dropped += 1;
            return None;
        }
        bucket.lines -= 1.0;
        Some(std::mem::take(&mut bucket.dropped))
    }

    /// How many were dropped since the last one that was admitted. They are told then, and forgotten.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.bucket().dropped)
    }

    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        lock(&self.bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_come_at_once_and_the_others_are_counted() {
        // None comes back while the test runs.
        let rate = Rate::new(0, 10);
        assert_eq!((0..1000).filter(|_| rate.admit() == Some(0)).count(), 10);
        assert_eq!(rate.take_dropped(), 990);
        assert_eq!(rate.take_dropped(), 0);
    }
}
