//! Sixteen small records in each scope. Each has four words that change together, and a version.
//!
//! A slot is a mutex around five words. It is held for a few instructions, so even a counter that
//! every request changes costs only tens of nanoseconds.

use std::sync::{Mutex, MutexGuard};

use rbdkit_plugin_api::lock;

use super::misuse::Misuse;

/// How many slots a scope has, by the contract.
pub const SLOTS: usize = 16;

/// The contents of one slot. All words are 0 at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotWords {
    /// Grows by one with every change.
    pub version: u64,
    /// Free for the filter. The word that `add` adds to.
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
pub struct Slots([Mutex<SlotWords>; SLOTS]);

impl Slots {
    fn lock(&self, slot: u32) -> Result<MutexGuard<'_, SlotWords>, Misuse> {
        let slot = self.0.get(slot as usize).ok_or(Misuse("there is no slot of that number"))?;
        Ok(lock(slot))
    }

    /// All words of a slot, as they were at one moment.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn get(&self, slot: u32) -> Result<SlotWords, Misuse> {
        Ok(*self.lock(slot)?)
    }

    /// Replaces the words of a slot if its version is still `words.version`. Answers whether it
    /// was.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn replace(&self, slot: u32, words: SlotWords) -> Result<bool, Misuse> {
        let mut now = self.lock(slot)?;
        let same = now.version == words.version;
        if same {
            *now = SlotWords { version: words.version.wrapping_add(1), ..words };
        }
        Ok(same)
    }

    /// Adds to word a, wrapping. Answers its new value.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn add(&self, slot: u32, delta: i64) -> Result<u64, Misuse> {
        let mut now = self.lock(slot)?;
        now.a = now.a.wrapping_add_signed(delta);
        now.version = now.version.wrapping_add(1);
        Ok(now.a)
    }

    /// Whether nothing was ever changed.
    pub(super) fn is_blank(&self) -> bool {
        self.0.iter().all(|slot| lock(slot).version == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_needs_the_version_that_was_read() {
        let slots = Slots::default();
        assert!(slots.replace(3, SlotWords { version: 0, a: 1, b: 2, c: 3, d: 4 }).unwrap());
        assert!(!slots.replace(3, SlotWords { version: 0, a: 9, ..SlotWords::default() }).unwrap());
        assert_eq!(slots.get(3).unwrap(), SlotWords { version: 1, a: 1, b: 2, c: 3, d: 4 });
        assert_eq!(slots.add(3, -2).unwrap(), u64::MAX);
        assert_eq!(slots.get(3).unwrap().version, 2);
        assert!(slots.get(16).is_err() && slots.add(u32::MAX, 1).is_err());
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
                            let more = SlotWords { a: words.a + 1, d: words.d + 2, ..words };
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
