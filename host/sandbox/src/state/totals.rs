//! Sums that all instances of a filter share, by a number as the key.
//!
//! Each thread adds in a part of its own, so threads that add at the same time do not wait for each
//! other. Reading a sum adds up the parts.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbdkit_plugin_api::{Errno, lock};

/// The most keys of a filter, by the contract. A key takes some 50 bytes in each part.
pub const MAX_KEYS: usize = 4096;

/// How many parts there are. More threads than these share parts.
const PARTS: usize = 16;

/// The sums of one thread. They have cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ThreadSums(Mutex<HashMap<u64, u64>>);

/// See the module.
#[derive(Debug, Default)]
pub struct Totals {
    parts: [ThreadSums; PARTS],
    /// All keys. Locked only for a key that is new in a part, with that part locked.
    keys: Mutex<HashSet<u64>>,
}

/// The number of this thread's part.
fn own_part() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % PARTS);
    }
    OWN.get()
}

impl Totals {
    /// Adds to the sum of a key. A sum ends at `u64::MAX`.
    ///
    /// # Errors
    /// ENOSPC if the key is new and there are [`MAX_KEYS`].
    pub fn add(&self, key: u64, delta: u64) -> Result<(), Errno> {
        let mut part = lock(&self.parts[own_part()].0);
        if let Some(sum) = part.get_mut(&key) {
            *sum = sum.saturating_add(delta);
            return Ok(());
        }
        let mut keys = lock(&self.keys);
        if keys.len() >= MAX_KEYS && !keys.contains(&key) {
            return Err(Errno::Enospc);
        }
        keys.insert(key);
        drop(keys);
        part.insert(key, delta);
        Ok(())
    }

    /// The sum of a key, or 0 if nothing was added to it.
    pub fn get(&self, key: u64) -> u64 {
        let sums = self.parts.iter().map(|part| lock(&part.0).get(&key).copied().unwrap_or(0));
        sums.fold(0, u64::saturating_add)
    }

    /// All keys that were added to, ascending, with their sums.
    pub fn list(&self) -> Vec<(u64, u64)> {
        let mut all = BTreeMap::new();
        for part in &self.parts {
            for (key, sum) in &*lock(&part.0) {
                let total = all.entry(*key).or_insert(0_u64);
                *total = total.saturating_add(*sum);
            }
        }
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_addition_of_parallel_threads_is_lost() {
        let totals = Totals::default();
        std::thread::scope(|scope| {
            for thread in 0..40_u64 {
                let totals = &totals;
                scope.spawn(move || (0..1000).for_each(|n| totals.add(n % 7, thread).unwrap()));
            }
        });
        let expected = |key: u64| (0..1000).filter(|n| n % 7 == key).count() as u64 * (0..40).sum::<u64>();
        assert_eq!(totals.list(), (0..7).map(|key| (key, expected(key))).collect::<Vec<_>>());
        assert_eq!((totals.get(3), totals.get(7)), (expected(3), 0));
    }

    #[test]
    fn a_key_beyond_the_limit_is_refused_and_the_others_still_count() {
        let totals = Totals::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let totals = &totals;
                scope.spawn(move || (0..2000).filter(|n| totals.add(n * 4 + thread, 1).is_err()).count());
            }
        });
        let keys = totals.list();
        assert_eq!(keys.len(), MAX_KEYS);
        assert_eq!(totals.add(u64::MAX, 1), Err(Errno::Enospc));
        assert_eq!(totals.add(keys[0].0, 1), Ok(()));
        assert_eq!(totals.get(keys[0].0), 2);
        assert!(keys.is_sorted());
    }

    #[test]
    fn a_sum_ends_at_the_largest_number() {
        let totals = Totals::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| totals.add(1, u64::MAX - 1).unwrap());
            }
        });
        totals.add(1, u64::MAX).unwrap();
        assert_eq!((totals.get(1), totals.list()), (u64::MAX, vec![(1, u64::MAX)]));
    }
}
