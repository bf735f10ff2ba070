//! Sixteen small records a scope, each of four words that change together under a version.
//!
//! A slot is a mutex around five words: it is held for some instructions, so that even a counter that every request touches costs tens
//! of nanoseconds. Counts of live connections are the host's to keep: [`ConnectionDeltas`] remembers what a connection added and
//! takes it back when it ends, in whatever way it ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ScopeState, Trap};

/// Slots a scope has, by the contract.
pub const SLOTS: usize = 16;

/// One slot. Zeroes at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// One more with every change.
    pub version: u64,
    /// Free for the filter; the one that `add` adds to.
    pub a: u64,
    /// Free for the filter.
    pub b: u64,
    /// Free for the filter.
    pub c: u64,
    /// Free for the filter.
    pub d: u64,
}

/// A scope's slots.
#[derive(Debug, Default)]
pub struct Slots([Mutex<Words>; SLOTS]);

impl Slots {
    fn lock(&self, slot: u32) -> Result<MutexGuard<'_, Words>, Trap> {
        let slot = self.0.get(slot as usize).ok_or(Trap("there is no slot of that number"))?;
        Ok(slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The words as they are together.
    pub fn get(&self, slot: u32) -> Result<Words, Trap> {
        Ok(*self.lock(slot)?)
    }

    /// Puts `words` there if the version is still `words.version`. Whether it was.
    pub fn replace(&self, slot: u32, words: Words) -> Result<bool, Trap> {
        let mut now = self.lock(slot)?;
        let same = now.version == words.version;
        if same {
            *now = Words { version: words.version.wrapping_add(1), ..words };
        }
        Ok(same)
    }

    /// Adds to word a, wrapping. The sum.
    pub fn add(&self, slot: u32, delta: i64) -> Result<u64, Trap> {
        let mut now = self.lock(slot)?;
        now.a = now.a.wrapping_add_signed(delta);
        now.version = now.version.wrapping_add(1);
        Ok(now.a)
    }

    /// Whether nothing was ever changed.
    pub(super) fn is_blank(&self) -> bool {
        self.0.iter().all(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).version == 0)
    }
}

/// What one connection added until it closes. Taken back by [`ConnectionDeltas::take_back`], at the latest when it is dropped.
#[derive(Default)]
pub struct ConnectionDeltas(Mutex<Vec<Delta>>);

struct Delta {
    scope: Arc<ScopeState>,
    slot: u32,
    sum: i64,
}

impl ConnectionDeltas {
    /// Adds to word a of a slot of `scope` until this connection closes. The sum in the slot.
    pub fn add(&self, scope: &Arc<ScopeState>, slot: u32, delta: i64) -> Result<u64, Trap> {
        let mut deltas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = scope.slots().add(slot, delta)?;
        // One entry a slot: however often a guest adds, the list has at most as many entries as there are slots.
        match deltas.iter_mut().find(|known| known.slot == slot && Arc::ptr_eq(&known.scope, scope)) {
            Some(known) => known.sum = known.sum.wrapping_add(delta),
            None => deltas.push(Delta { scope: Arc::clone(scope), slot, sum: delta }),
        }
        Ok(sum)
    }

    /// The connection has closed: undoes what it added. Doing so twice does nothing.
    pub fn take_back(&self) {
        let deltas = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for delta in deltas {
            // The slot existed when it was added to. A sum of i64::MIN is its own negative, which is right in wrapping arithmetic.
            let _ = delta.scope.slots().add(delta.slot, delta.sum.wrapping_neg());
        }
    }
}

impl Drop for ConnectionDeltas {
    fn drop(&mut self) {
        self.take_back();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FilterState, Limits};
    use super::*;

    #[test]
    fn replace_needs_the_version_that_was_read() {
        let slots = Slots::default();
        assert!(slots.replace(3, Words { version: 0, a: 1, b: 2, c: 3, d: 4 }).unwrap());
        assert!(!slots.replace(3, Words { version: 0, a: 9, ..Words::default() }).unwrap());
        assert_eq!(slots.get(3).unwrap(), Words { version: 1, a: 1, b: 2, c: 3, d: 4 });
        assert_eq!(slots.add(3, -2).unwrap(), u64::MAX);
        assert_eq!(slots.get(3).unwrap().version, 2);
        assert!(slots.get(16).is_err() && slots.add(u32::MAX, 1).is_err());
    }

    #[test]
    fn what_a_connection_added_is_gone_when_it_closes() {
        let state = FilterState::new(Limits::default());
        let (one, two) = (ConnectionDeltas::default(), ConnectionDeltas::default());
        assert_eq!(one.add(state.server(), 0, 1), Ok(1));
        assert_eq!(two.add(state.server(), 0, 1), Ok(2));
        assert_eq!(one.add(state.server(), 0, 5), Ok(7));
        assert_eq!(one.0.lock().unwrap().len(), 1);
        one.take_back();
        one.take_back();
        assert_eq!(state.server().slots().get(0).unwrap().a, 1);
        drop(two);
        assert_eq!(state.server().slots().get(0).unwrap().a, 0);
    }

    #[test]
    fn concurrent_replacements_lose_nothing() {
        let slots = Slots::default();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..2000 {
                        loop {
                            let words = slots.get(0).unwrap();
                            let more = Words { a: words.a + 1, d: words.d + 2, ..words };
                            if slots.replace(0, more).unwrap() {
                                break;
                            }
                        }
                    }
                });
            }
        });
        let words = slots.get(0).unwrap();
        assert_eq!((words.a, words.d, words.version), (8000, 16000, 8000));
    }
}
