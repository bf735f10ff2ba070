//! What is kept for whoever needs one next, and how much of it nobody has needed of late.
//!
//! Things that cost something to make (buffers, pipes, instances of a filter) are kept when they are free. As many as the busiest moment needed would
//! be kept for ever so. A [`Shelf`] therefore remembers the fewest that it had since somebody last looked: so many have lain there all the
//! time, and can go without anybody having missed one. The last that was put there is the first that is taken, so those are the oldest.
//!
//! Who looks, and when, is the affair of [`Stir`]'s owner: while there is something going on once in a while, and once more when there
//! is nothing any more.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Things that are kept, last in, first out.
pub struct Shelf<T> {
    kept: Vec<T>,
    /// The fewest since [`Shelf::spare`] was last called.
    fewest: usize,
}

impl<T> Shelf<T> {
    /// With nothing on it.
    pub const fn new() -> Shelf<T> {
        Shelf { kept: Vec::new(), fewest: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The one that was put there last.
    pub fn take(&mut self) -> Option<T> {
        let last = self.kept.pop();
        self.fewest = self.fewest.min(self.kept.len());
        last
    }

    /// Keeps one more.
    pub fn put(&mut self, one: T) {
        self.kept.push(one);
    }

    /// Takes those away that nobody has needed since the last call, but for the `keep` that were used last. Dropping them is left to the caller: it may
    /// hold a lock now.
    pub fn spare(&mut self, keep: usize) -> Vec<T> {
        let count = self.fewest.min(self.kept.len().saturating_sub(keep));
        let spare: Vec<T> = self.kept.drain(..count).collect();
        self.fewest = self.kept.len();
        spare
    }
}

impl<T> Default for Shelf<T> {
    fn default() -> Shelf<T> {
        Shelf::new()
    }
}

impl<T> fmt::Debug for Shelf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("kept", &self.kept.len()).field("fewest", &self.fewest).finish()
    }
}

/// Whether anything was going on since somebody last asked.
///
/// Saying so is one load, as long as nobody has asked since it was last said.
#[derive(Debug, Default)]
pub struct Stir {
    stirred: AtomicBool,
    wake: Notify,
}

impl Stir {
    /// Something goes on.
    pub fn stir(&self) {
        // Nothing else is published by it, so that the order of this and what goes on does not matter: who looks too early looks again.
        if !self.stirred.load(Ordering::Relaxed) && !self.stirred.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Whether something went on since this was last asked.
    pub fn settle(&self) -> bool {
        self.stirred.swap(false, Ordering::Relaxed)
    }

    /// Waits until something goes on, if nothing has since it was last asked. It does not count as asking: what went on is still to be told to who
    /// looks next, because a shelf that was used since the last look gives nothing up in the first one.
    pub async fn stirred(&self) {
        while !self.stirred.load(Ordering::Relaxed) {
            // One from before it was last asked wakes in vain, once.
            self.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_needed_since_the_last_look_stays() {
        let mut shelf = Shelf::new();
        for number in 0..10 {
            shelf.put(number);
        }
        // Nobody knows yet how long they have been there.
        assert!(shelf.spare(0).is_empty());
        // Three at once are needed, again and again.
        for _ in 0..5 {
            let taken: Vec<u32> = (0..3).filter_map(|_| shelf.take()).collect();
            assert_eq!(taken, [9, 8, 7]);
            taken.into_iter().rev().for_each(|number| shelf.put(number));
        }
        assert_eq!(shelf.spare(0), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(shelf.len(), 3);
        // Then one.
        let one = shelf.take().unwrap();
        shelf.put(one);
        assert_eq!(shelf.spare(0), [7, 8]);
        // And then none, but one is to be kept whatever happens.
        assert!(shelf.spare(1).is_empty());
        assert_eq!(shelf.spare(0), [9]);
        assert!(shelf.is_empty() && shelf.take().is_none());
    }

    #[test]
    fn what_is_out_at_a_look_and_comes_back_is_not_taken_for_idle() {
        let mut shelf = Shelf::new();
        shelf.put('a');
        assert!(shelf.spare(0).is_empty());
        let out = shelf.take().unwrap();
        assert!(shelf.spare(0).is_empty());
        shelf.put(out);
        assert!(shelf.spare(0).is_empty());
        assert_eq!(shelf.spare(0), ['a']);
    }

    #[test]
    fn who_waits_for_a_stir_is_woken_once_for_all_that_went_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let stir = Stir::default();
        stir.stir();
        stir.stir();
        assert!(stir.settle() && !stir.settle());
        stir.stir();
        runtime.block_on(async {
            stir.stirred().await;
            assert!(stir.settle());
            // The permits of before are used up or wake in vain: what counts is whether anything went on.
            let waiting = stir.stirred();
            let going_on = async {
                tokio::task::yield_now().await;
                assert!(!stir.settle());
                stir.stir();
            };
            tokio::join!(waiting, going_on);
        });
        assert!(stir.settle() && !stir.settle());
    }
}
