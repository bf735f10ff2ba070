//! What is known of the objects of a disk: their tags, or that there is none.
//!
//! A disk may have millions of objects, so only those used lately are known. What is not known is
//! asked for.
//!
//! The time at which something was learnt counts, because the disk may have got another writer
//! since. Times are numbers of one clock that only counts ([`Clock`]).

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rbdkit_plugin_api::lock;

use crate::store::Tag;

/// A clock that counts the questions asked of it.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// Now: later than every time that was returned before.
    pub(crate) fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What is known of one object.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Its version; none: there is no object.
    pub(crate) tag: Option<Tag>,
    /// When the store said so. 0: we wrote it ourselves.
    pub(crate) learnt: u64,
}

/// How many objects are known in each of two halves. An entry takes about 200 bytes.
const HALF: usize = 8192;

/// How many blocks are remembered in [`Tags::is_doubtful`]; with more, all count as such.
const MAX_DOUBTFUL: usize = 16_384;

/// What is known of the objects used lately.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    halves: Mutex<Halves>,
    doubtful: Mutex<Doubtful>,
}

/// Entries are added to `young`. When it is full it becomes `old`, and the old ones are forgotten.
#[derive(Debug, Default)]
struct Halves {
    young: HashMap<u64, Known>,
    old: HashMap<u64, Known>,
}

#[derive(Debug, Default)]
struct Doubtful {
    blocks: HashSet<u64>,
    all: bool,
}

impl Tags {
    pub(crate) fn get(&self, block: u64) -> Option<Known> {
        let halves = &mut *lock(&self.halves);
        if let Some(known) = halves.young.get(&block) {
            return Some(known.clone());
        }
        let known = halves.old.remove(&block)?;
        halves.add(block, known.clone());
        Some(known)
    }

    pub(crate) fn set(&self, block: u64, known: Known) {
        let halves = &mut *lock(&self.halves);
        halves.old.remove(&block);
        halves.add(block, known);
    }

    pub(crate) fn forget(&self, block: u64) {
        let halves = &mut *lock(&self.halves);
        halves.old.remove(&block);
        halves.young.remove(&block);
    }

    /// An attempt to write this block failed, and the store may still carry it out. If the object
    /// were deleted, such a late write under the condition that there is none would bring it back.
    pub(crate) fn set_doubtful(&self, block: u64) {
        let doubtful = &mut *lock(&self.doubtful);
        doubtful.all |= doubtful.blocks.len() >= MAX_DOUBTFUL;
        if doubtful.all {
            doubtful.blocks = HashSet::new();
        } else {
            doubtful.blocks.insert(block);
        }
    }

    pub(crate) fn is_doubtful(&self, block: u64) -> bool {
        let doubtful = lock(&self.doubtful);
        doubtful.all || doubtful.blocks.contains(&block)
    }
}

impl Halves {
    fn add(&mut self, block: u64, known: Known) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(learnt: u64) -> Known {
        Known { tag: None, learnt }
    }

    #[test]
    fn those_used_last_are_known_and_their_number_is_bounded() {
        let tags = Tags::default();
        for block in 0..100_000 {
            tags.set(block, known(block));
            assert_eq!(tags.get(7).is_some(), block >= 7, "{block}");
        }
        let halves = lock(&tags.halves);
        assert!(halves.young.len() + halves.old.len() <= 2 * HALF);
        assert!(halves.young.contains_key(&99_999));
    }

    #[test]
    fn with_too_many_doubtful_blocks_all_are() {
        let tags = Tags::default();
        (0..MAX_DOUBTFUL as u64).for_each(|block| tags.set_doubtful(block));
        assert!(tags.is_doubtful(0) && !tags.is_doubtful(u64::MAX));
        tags.set_doubtful(u64::MAX);
        assert!(tags.is_doubtful(5_000_000));
        assert!(lock(&tags.doubtful).blocks.is_empty());
    }
}
