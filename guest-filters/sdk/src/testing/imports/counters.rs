//! Sums that the instances share.

use crate::Errno;
use crate::testing::call::{RUNNING, with};

/// The most keys of a filter.
const MAX_KEYS: usize = 4096;

pub(crate) fn add(key: u64, delta: u64) -> Result<(), Errno> {
    with("counters.add", &RUNNING, |call| {
        let mut world = call.world();
        if world.counters.len() >= MAX_KEYS && !world.counters.contains_key(&key) {
            return Err(Errno::Enospc);
        }
        let sum = world.counters.entry(key).or_default();
        *sum = sum.saturating_add(delta);
        Ok(())
    })
}

pub(crate) fn add_all(additions: &[(u64, u64)]) -> Result<(), Errno> {
    if additions.len() > MAX_KEYS {
        return Err(Errno::Einval);
    }
    // An addition without a place does not keep the others from being made.
    let mut result = Ok(());
    for (key, delta) in additions {
        result = add(*key, *delta).and(result);
    }
    result
}

pub(crate) fn get(key: u64) -> u64 {
    with("counters.get", &RUNNING, |call| call.world().counters.get(&key).copied().unwrap_or(0))
}

pub(crate) fn list() -> Vec<(u64, u64)> {
    with("counters.list", &RUNNING, |call| call.world().counters.iter().map(|(key, sum)| (*key, *sum)).collect())
}
