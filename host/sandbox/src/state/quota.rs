//! A limit on something that several users share, such as bytes of memory or bytes on a disk.

use std::sync::atomic::{AtomicU64, Ordering};

/// An amount that any user may take from, first come first served. The user that took an amount
/// gives it back.
#[derive(Debug)]
pub struct Quota {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Quota {
    /// Makes a quota of `limit`, of which nothing is taken.
    pub fn new(limit: u64) -> Quota {
        Quota { limit: AtomicU64::new(limit), used: AtomicU64::new(0) }
    }

    /// Takes `n` if that much is left, otherwise nothing. Answers whether it was taken.
    pub fn take(&self, n: u64) -> bool {
        let limit = self.limit();
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_add(n).filter(|sum| *sum <= limit))
            .is_ok()
    }

    /// Takes `n` even if the limit is exceeded: for something that must not fail, such as undoing a
    /// change.
    pub fn overdraw(&self, n: u64) {
        self.used.fetch_add(n, Ordering::Relaxed);
    }

    /// Gives back `n` that was taken.
    pub fn give(&self, n: u64) {
        self.used.fetch_sub(n, Ordering::Relaxed);
    }

    /// The amount that is taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that may be taken.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Raises the limit to `limit` if it is lower. Answers by how much it rose.
    pub fn raise_limit(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.limit.fetch_max(limit, Ordering::Relaxed))
    }

    /// Changes the limit. What is taken already stays taken.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_taken_whole_or_not_at_all() {
        let quota = Quota::new(10);
        assert!(quota.take(7));
        assert!(!quota.take(4));
        assert!(!quota.take(u64::MAX));
        assert!(quota.take(3));
        quota.give(10);
        assert_eq!(quota.used(), 0);
    }
}
