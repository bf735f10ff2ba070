//! Reclaiming blocks: freeing scratch space when the cache is too large or scratch is full.

use rbdkit_filter_blocks::{ABSENT, Host, Mode};

use crate::cache::{CLEAN, Cache, DIRTY};
use crate::lru::Lru;

/// How many blocks are reclaimed under one lock at most.
const RECLAIM_RUN: u64 = 16;

impl<H: Host> Cache<'_, H> {
    /// Called after blocks were added, or if scratch was too full for them: makes room for the next
    /// ones. Holds no lock, neither before nor after.
    pub(crate) fn after_copying(&self, kept: u64, full: bool) {
        if full {
            self.reclaim(RECLAIM_RUN);
        } else {
            self.make_room(kept);
        }
    }

    /// Called after `added` blocks were added: reclaims some if there are too many. Holds no lock,
    /// neither before nor after.
    pub(crate) fn make_room(&self, added: u64) {
        let Some(limit) = self.limit else { return };
        let used = self.states.count(CLEAN) + self.states.count(DIRTY);
        let lru = Lru::get(self.host);
        let reclaiming = used > limit.high || lru.reclaiming && used > limit.low;
        lru.set_reclaiming(self.host, reclaiming);
        if reclaiming {
            // More than were added, so that reclaiming makes progress. Not all at once, so that no
            // single request has to wait for all of it.
            self.reclaim((2 * added + 2).min(used - limit.low));
        }
    }

    /// Frees about `wanted` blocks, the least recently used ones first. Returns how many it freed.
    /// Holds no lock, neither before nor after.
    pub(crate) fn reclaim(&self, wanted: u64) -> u64 {
        let Ok(size) = self.host.size() else { return 0 };
        let mut freed = 0;
        // Some of the blocks that it finds are in use, cannot be written back, or are gone already.
        // The number of attempts is limited, so that the search ends.
        for _ in 0..wanted.min(4096) + 4 {
            if freed >= wanted {
                break;
            }
            let lru = Lru::get(self.host);
            let max = (wanted - freed).min(RECLAIM_RUN);
            let oldest = if self.limit.is_some() { lru.oldest(self.host, max) } else { None };
            let Some((first, count)) = oldest.or_else(|| self.any_stored(lru.hand(), max)) else { break };
            lru.move_hand(self.host, first + count);
            freed += self.evict(first, count, size);
        }
        freed
    }

    /// Some stored blocks, from `hand` on, as the first one and their number. It prefers clean
    /// ones.
    fn any_stored(&self, hand: u64, max: u64) -> Option<(u64, u64)> {
        let find = |states| self.states.find(hand, states).or_else(|| self.states.find(0, states));
        let block = find(1 << CLEAN).or_else(|| if self.next.write { find(1 << DIRTY) } else { None })?;
        Some((block, self.states.run(block, max).1))
    }

    /// Writes some blocks back and frees their space. Returns how many it freed.
    fn evict(&self, first: u64, count: u64, size: u64) -> u64 {
        let (start, stop) = self.states.block_size.span(first, count, size);
        if self.states.lock(start, stop, Mode::Exclusive).is_err() {
            return 0;
        }
        if self.next.write {
            // A block that could not be written back stays DIRTY, and is not freed.
            let _ = self.write_blocks(first, count, size);
        }
        // The state must change before the space is freed. In the other order a CLEAN block would
        // be empty for a moment, or for good if the call ended in between.
        let freed = self.states.set(first, count, 1 << CLEAN, ABSENT);
        self.free_unused(first, count, size);
        Lru::forget(self.host, first, count);
        self.host.unlock();
        freed
    }
}
