//! A rate limit for log lines.
//!
//! A client or a guest must not be able to fill the disk with log lines, or to bury other lines.
//! The limit is a token bucket: it admits a number of lines per second, and a burst. It counts the
//! lines that were dropped, so that the next line that is admitted can report them. The report is a
//! line too, and counts as one.

use std::sync::Mutex;
use std::time::Instant;

use crate::lock::lock;

/// A token bucket of log lines.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    burst: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    lines: f64,
    filled: Instant,
    dropped: u64,
}

impl Rate {
    /// A limit of `per_second` lines a second, and of `burst` lines at once. The bucket is full at
    /// first.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Rate {
        // A burst of 1 has no room for a line and its report.
        let burst = f64::from(if per_second > 0 { burst.max(2) } else { burst });
        let bucket = Mutex::new(Bucket { lines: burst, filled: Instant::now(), dropped: 0 });
        Rate { per_second: f64::from(per_second), burst, bucket }
    }

    /// Some if the line is admitted: the number of lines dropped since the last admitted line. If
    /// it is not 0, the caller may write one line more, which reports it.
    pub fn admit(&self) -> Option<u64> {
        let mut bucket = self.bucket();
        let now = Instant::now();
        let grown = bucket.lines + now.duration_since(bucket.filled).as_secs_f64() * self.per_second;
        bucket.lines = grown.min(self.burst);
        bucket.filled = now;
        let needed = if bucket.dropped > 0 { 2.0 } else { 1.0 };
        if bucket.lines < needed {
            bucket.dropped += 1;
            return None;
        }
        bucket.lines -= needed;
        Some(std::mem::take(&mut bucket.dropped))
    }

    /// Counts further lines for a line that was admitted, because it is long. The next lines have
    /// to wait for them.
    pub fn charge(&self, lines: usize) {
        // A line is cut long before its length loses precision here.
        self.bucket().lines -= lines as f64;
    }

    /// The number of lines dropped since the last admitted line. Resets the count.
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
    fn a_burst_is_admitted_and_the_other_lines_are_counted() {
        // At 0 lines a second the bucket is not refilled during the test.
        let rate = Rate::new(0, 10);
        assert_eq!((0..1000).filter(|_| rate.admit() == Some(0)).count(), 10);
        assert_eq!(rate.take_dropped(), 990);
        assert_eq!(rate.take_dropped(), 0);
    }

    #[test]
    fn reports_of_dropped_lines_and_long_lines_count() {
        let rate = Rate::new(0, 10);
        rate.charge(7);
        assert_eq!((rate.admit(), rate.admit()), (Some(0), Some(0)));
        rate.charge(1);
        assert_eq!(rate.admit(), None);
        rate.charge(0);
        // One line has room, but not with the report of the line that was dropped.
        rate.bucket().lines = 1.0;
        assert_eq!(rate.admit(), None);
        rate.bucket().lines = 2.0;
        assert_eq!(rate.admit(), Some(2));
        assert_eq!(rate.admit(), None);
    }
}
