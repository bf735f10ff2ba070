//! A pool of idle items that knows how many of them were not needed lately.
//!
//! Items that are expensive to make (buffers, pipes, instances of a filter) are kept for reuse.
//! Without a limit the pool would keep as many as the busiest moment needed, for ever. So an
//! [`IdlePool`] records the smallest number that it held since the last check. That many were idle
//! all the time and can be freed. The pool is a stack, so these are the items that were put there
//! first.
//!
//! The owner of an [`Activity`] decides when to check: periodically while requests come, and once
//! more after the last one.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Idle items, last in, first out.
pub struct IdlePool<T> {
    idle: Vec<T>,
    /// The smallest number of idle items since the last call of [`IdlePool::take_spare`].
    fewest: usize,
}

impl<T> IdlePool<T> {
    /// An empty pool.
    pub const fn new() -> IdlePool<T> {
        IdlePool { idle: Vec::new(), fewest: 0 }
    }

    /// The number of idle items.
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether no item is idle.
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    /// Takes the item that was put there last.
    pub fn take(&mut self) -> Option<T> {
        let last = self.idle.pop();
        self.fewest = self.fewest.min(self.idle.len());
        last
    }

    /// Adds an item.
    pub fn put(&mut self, one: T) {
        self.idle.push(one);
    }

    /// Takes out the items that were not needed since the last call, but leaves at least `keep`.
    /// The caller drops them after it has released its lock.
    pub fn take_spare(&mut self, keep: usize) -> Vec<T> {
        let count = self.fewest.min(self.idle.len().saturating_sub(keep));
        let spare: Vec<T> = self.idle.drain(..count).collect();
        self.fewest = self.idle.len();
        spare
    }
}

impl<T> Default for IdlePool<T> {
    fn default() -> IdlePool<T> {
        IdlePool::new()
    }
}

impl<T> fmt::Debug for IdlePool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdlePool").field("idle", &self.idle.len()).field("fewest", &self.fewest).finish()
    }
}

/// A flag that records whether anything has happened since it was last taken.
///
/// Setting it again costs one load.
#[derive(Debug, Default)]
pub struct Activity {
    set: AtomicBool,
    wake: Notify,
}

impl Activity {
    /// Sets the flag and wakes the waiter.
    pub fn signal(&self) {
        // Relaxed: the flag publishes no other data, and a waiter that checks too early is woken
        // again.
        if !self.set.load(Ordering::Relaxed) && !self.set.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Clears the flag and returns what it was.
    pub fn take(&self) -> bool {
        self.set.swap(false, Ordering::Relaxed)
    }

    /// Waits until the flag is set. The flag stays set, so that the next [`Activity::take`] sees
    /// it: a pool that was used since the last check has nothing spare in the first check after
    /// that.
    pub async fn wait(&self) {
        while !self.set.load(Ordering::Relaxed) {
            // A notification from before the last `take` causes one spurious wakeup.
            self.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_needed_since_the_last_check_stays() {
        let mut pool = IdlePool::new();
        for number in 0..10 {
            pool.put(number);
        }
        // Nobody knows yet how long they have been there.
        assert!(pool.take_spare(0).is_empty());
        // Three at once are needed, again and again.
        for _ in 0..5 {
            let taken: Vec<u32> = (0..3).filter_map(|_| pool.take()).collect();
            assert_eq!(taken, [9, 8, 7]);
            taken.into_iter().rev().for_each(|number| pool.put(number));
        }
        assert_eq!(pool.take_spare(0), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(pool.len(), 3);
        // Then one.
        let one = pool.take().unwrap();
        pool.put(one);
        assert_eq!(pool.take_spare(0), [7, 8]);
        // And then none, but `keep` is 1.
        assert!(pool.take_spare(1).is_empty());
        assert_eq!(pool.take_spare(0), [9]);
        assert!(pool.is_empty() && pool.take().is_none());
    }

    #[test]
    fn what_is_in_use_during_a_check_and_comes_back_is_not_spare() {
        let mut pool = IdlePool::new();
        pool.put('a');
        assert!(pool.take_spare(0).is_empty());
        let out = pool.take().unwrap();
        assert!(pool.take_spare(0).is_empty());
        pool.put(out);
        assert!(pool.take_spare(0).is_empty());
        assert_eq!(pool.take_spare(0), ['a']);
    }

    #[test]
    fn a_waiter_is_woken_once_for_all_signals_before() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let activity = Activity::default();
        activity.signal();
        activity.signal();
        assert!(activity.take() && !activity.take());
        activity.signal();
        runtime.block_on(async {
            activity.wait().await;
            assert!(activity.take());
            // Earlier notifications are used up or wake for nothing: only the flag counts.
            let waiting = activity.wait();
            let signalling = async {
                tokio::task::yield_now().await;
                assert!(!activity.take());
                activity.signal();
            };
            tokio::join!(waiting, signalling);
        });
        assert!(activity.take() && !activity.take());
    }
}
