//! A cache of tables that a decoder has made.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Keeps what took work to make: a table that was read and checked, a cluster that was
/// decompressed. Each has a weight; together they weigh at most the bound. The one that was used
/// longest ago goes first. One that is heavier than the bound is not kept.
pub struct TableCache<K, V> {
    bound: usize,
    kept: RefCell<Kept<K, V>>,
}

struct Kept<K, V> {
    entries: BTreeMap<K, CachedTable<V>>,
    weight: usize,
    uses: u64,
}

struct CachedTable<V> {
    value: Rc<V>,
    weight: usize,
    used: u64,
}

impl<K: Ord + Clone, V> TableCache<K, V> {
    /// An empty cache. `bound` is in the unit of the weights, which is bytes for most.
    pub fn new(bound: usize) -> TableCache<K, V> {
        TableCache { bound, kept: RefCell::new(Kept { entries: BTreeMap::new(), weight: 0, uses: 0 }) }
    }

    /// What is kept under `key`.
    pub fn get(&self, key: &K) -> Option<Rc<V>> {
        let mut kept = self.kept.borrow_mut();
        kept.uses += 1;
        let uses = kept.uses;
        kept.entries.get_mut(key).map(|entry| {
            entry.used = uses;
            Rc::clone(&entry.value)
        })
    }

    /// What is kept under `key`, or what `make` makes, with its weight.
    ///
    /// # Errors
    /// Those of `make`. Nothing is kept then.
    pub fn get_or<E>(&self, key: K, make: impl FnOnce() -> Result<(V, usize), E>) -> Result<Rc<V>, E> {
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let (value, weight) = make()?;
        let value = Rc::new(value);
        self.put(key, Rc::clone(&value), weight);
        Ok(value)
    }

    fn put(&self, key: K, value: Rc<V>, weight: usize) {
        let mut kept = self.kept.borrow_mut();
        kept.forget(&key);
        if weight > self.bound {
            return;
        }
        while kept.weight + weight > self.bound {
            let Some(oldest) = kept.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())
            else {
                break;
            };
            kept.forget(&oldest);
        }
        let used = kept.uses;
        kept.weight += weight;
        kept.entries.insert(key, CachedTable { value, weight, used });
    }

    /// Forgets what is kept under `key`.
    pub fn forget(&self, key: &K) {
        self.kept.borrow_mut().forget(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut kept = self.kept.borrow_mut();
        kept.entries.clear();
        kept.weight = 0;
    }
}

impl<K: Ord, V> Kept<K, V> {
    fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.weight -= entry.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_was_used_longest_ago_goes_first() {
        let cache = TableCache::new(10);
        for key in 0..3 {
            cache.get_or(key, || Ok::<_, ()>((key * 10, 3))).unwrap();
        }
        assert_eq!(cache.get(&0).as_deref(), Some(&0));
        cache.get_or(3, || Ok::<_, ()>((30, 3))).unwrap();
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get(&0).as_deref(), Some(&0));
        assert_eq!(*cache.get_or(0, || Err("not made again")).unwrap(), 0);
        assert_eq!(cache.get_or(9, || Err("failed")), Err("failed"));
    }

    #[test]
    fn what_is_too_heavy_is_made_and_not_kept() {
        let cache = TableCache::new(10);
        cache.get_or("kept", || Ok::<_, ()>((1, 10))).unwrap();
        assert_eq!(*cache.get_or("heavy", || Ok::<_, ()>((2, 11))).unwrap(), 2);
        assert_eq!((cache.get(&"heavy"), cache.get(&"kept").as_deref()), (None, Some(&1)));
        cache.forget(&"kept");
        cache.get_or("a", || Ok::<_, ()>((1, 5))).unwrap();
        cache.get_or("b", || Ok::<_, ()>((1, 5))).unwrap();
        assert!(cache.get(&"a").is_some() && cache.get(&"b").is_some());
        cache.clear();
        assert!(cache.get(&"a").is_none());
    }
}
