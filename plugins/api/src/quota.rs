//! A limit on something that several users share, such as bytes of memory or bytes on a disk.
//!
//! What is allocated by the wish of a client, a guest or another server is taken from a quota
//! first. A quota knows how much of it is used and how much was used at most ([`Usage`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An amount that any user may take from, first come first served. The user that took an amount
/// gives it back.
#[derive(Debug)]
pub struct Quota {
    limit: AtomicU64,
    used: AtomicU64,
    peak: AtomicU64,
}

/// An amount that is taken from a quota until this value is dropped.
#[derive(Debug)]
pub struct Held {
    quota: Arc<Quota>,
    amount: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.quota.give(self.amount);
    }
}

/// How much of an account's limit is used, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The account's name, as the option that sets the limit has it; a filter's with its name
    /// before it (`cow:maps`).
    pub account: String,
    /// The limit, in bytes unless the account's name is a count's. `u64::MAX`: none.
    pub limit: u64,
    /// What is used now.
    pub used: u64,
    /// The most that was used at a time.
    pub peak: u64,
}

impl Quota {
    /// Makes a quota of `limit`, of which nothing is taken.
    pub fn new(limit: u64) -> Quota {
        Quota { limit: AtomicU64::new(limit), used: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    /// Takes `n` if that much is left, otherwise nothing. Answers whether it was taken.
    pub fn take(&self, n: u64) -> bool {
        self.take_below(n, self.limit())
    }

    /// [`Quota::take`], for as long as the answer is kept.
    pub fn hold(self: &Arc<Self>, n: u64) -> Option<Held> {
        self.take(n).then(|| Held { quota: Arc::clone(self), amount: n })
    }

    /// [`Quota::take`], with a lower limit for this amount.
    pub fn take_below(&self, n: u64, limit: u64) -> bool {
        let more = |used: u64| used.checked_add(n).filter(|sum| *sum <= limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if let Ok(before) = taken {
            self.note(before + n);
        }
        taken.is_ok()
    }

    fn note(&self, used: u64) {
        if used > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(used, Ordering::Relaxed);
        }
    }

    /// Takes `n` even if the limit is exceeded: for something that must not fail, such as undoing a
    /// change.
    pub fn overdraw(&self, n: u64) {
        let before = self.used.fetch_add(n, Ordering::Relaxed);
        self.note(before.saturating_add(n));
    }

    /// Gives back `n` that was taken.
    pub fn give(&self, n: u64) {
        self.used.fetch_sub(n, Ordering::Relaxed);
    }

    /// The amount that is taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What is used, for a report under this name.
    pub fn usage(&self, account: impl Into<String>) -> Usage {
        let peak = self.peak.load(Ordering::Relaxed);
        Usage { account: account.into(), limit: self.limit(), used: self.used(), peak }
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
        let quota = Arc::new(quota);
        let held = quota.hold(9).unwrap();
        assert!(quota.hold(2).is_none());
        drop(held);
        assert_eq!(quota.used(), 0);
        assert_eq!(quota.usage("x"), Usage { account: "x".into(), limit: 10, used: 0, peak: 10 });
    }
}
