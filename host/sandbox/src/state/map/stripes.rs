//! Where a map keeps its chunks: in stripes, each behind a lock of its own.
//!
//! Chunk n is in stripe n modulo the number of stripes, so neighbouring chunks are in different
//! stripes. A function that touches several chunks locks all their stripes in ascending order,
//! which is the same order for every caller, so no two callers wait for each other.

use std::collections::btree_map::{BTreeMap, Range};
use std::iter::Peekable;
use std::ops::Deref;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use rbdkit_plugin_api::{read_lock, write_lock};

use super::chunk::{CHUNK_BLOCKS, Chunk};

/// The largest number of stripes. A server has fewer busy threads than that.
pub(super) const MAX_STRIPES: u64 = 64;

/// The chunks that a stripe keeps, by number.
pub(super) type Chunks = BTreeMap<u64, Chunk>;

/// One stripe, in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Stripe(RwLock<Chunks>);

/// Stripes that are locked, with their indices, which ascend.
pub(super) type LockedStripes<G> = Vec<(usize, G)>;

/// All stripes of a map. Their number is a power of two.
pub(super) struct Stripes(Box<[Stripe]>);

impl Stripes {
    /// Empty stripes for a map of `blocks` blocks: one for each chunk, and at most [`MAX_STRIPES`].
    pub(super) fn for_blocks(blocks: u64) -> Stripes {
        let count = blocks.div_ceil(CHUNK_BLOCKS).clamp(1, MAX_STRIPES).next_power_of_two();
        Stripes((0..count).map(|_| Stripe::default()).collect())
    }

    /// How many stripes there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The index of the stripe that a chunk belongs to.
    pub(super) fn index(&self, chunk: u64) -> usize {
        (chunk % self.count()) as usize
    }

    /// Locks one stripe for reading.
    pub(super) fn read(&self, index: usize) -> RwLockReadGuard<'_, Chunks> {
        read_lock(&self.0[index].0)
    }

    /// Locks one stripe for changing it.
    pub(super) fn write(&self, index: usize) -> RwLockWriteGuard<'_, Chunks> {
        write_lock(&self.0[index].0)
    }

    /// Locks the stripes of the chunks `low..=high`, in ascending order, with [`Stripes::read`] or
    /// [`Stripes::write`].
    pub(super) fn lock<'a, G>(
        &'a self,
        (low, high): (u64, u64),
        lock: impl Fn(&'a Stripes, usize) -> G,
    ) -> LockedStripes<G> {
        let all = self.0.len();
        let mut indices: Vec<usize> = (low..=high).take(all).map(|chunk| self.index(chunk)).collect();
        indices.sort_unstable();
        indices.into_iter().map(|index| (index, lock(self, index))).collect()
    }
}

/// The blocks `first..end` of a map. Never empty, except as the rest of a [`Walk`].
#[derive(Clone, Copy)]
pub(in crate::state) struct Blocks {
    pub(in crate::state) first: u64,
    pub(in crate::state) end: u64,
}

impl Blocks {
    /// The numbers of the first and the last chunk that they touch.
    pub(super) fn chunks(self) -> (u64, u64) {
        (self.first / CHUNK_BLOCKS, (self.end - 1) / CHUNK_BLOCKS)
    }

    /// The part of the blocks that lies in chunk `number`, counted from the beginning of the chunk.
    pub(super) fn within(self, number: u64) -> (u64, u64) {
        let base = number * CHUNK_BLOCKS;
        (self.first.max(base) - base, (self.end - base).min(CHUNK_BLOCKS))
    }

    /// How many of the blocks lie in chunks of stripe `index` of `stripes`.
    pub(super) fn count_in_stripe(self, index: u64, stripes: u64) -> u64 {
        let (low, high) = self.chunks();
        let number = first_in_stripe(low, index, stripes);
        if number > high {
            return 0;
        }
        let chunks = (high - number) / stripes + 1;
        // The last chunk of a map may reach to block 2^64, so the product may wrap. Subtracting
        // what the chunks at the two ends do not cover brings the sum back below 2^64.
        let mut sum = chunks.wrapping_mul(CHUNK_BLOCKS);
        for edge in [low, high] {
            if edge % stripes == index {
                let (at, end) = self.within(edge);
                sum = sum.wrapping_sub(CHUNK_BLOCKS - (end - at));
            }
        }
        sum
    }
}

/// The first chunk from `low` on that is in stripe `index` of `stripes`.
pub(super) fn first_in_stripe(low: u64, index: u64, stripes: u64) -> u64 {
    low + (index + stripes - low % stripes) % stripes
}

/// One step of a [`Walk`]: a chunk with its number, or a gap where the map keeps no chunks.
pub(super) enum WalkStep<'a> {
    Chunk(u64, &'a Chunk),
    Gap,
}

/// Goes through the blocks in locked stripes in ascending order, chunk by chunk and gap by gap.
pub(super) struct Walk<'a> {
    /// By stripe. None for a stripe that was not locked.
    heads: Vec<Option<Peekable<Range<'a, u64, Chunk>>>>,
    /// The blocks that are left.
    rest: Blocks,
}

impl<'a> Walk<'a> {
    /// A walk through `blocks`, the stripes of all of which are in `locked`.
    pub(super) fn new<G: Deref<Target = Chunks>>(
        stripes: &Stripes,
        locked: &'a LockedStripes<G>,
        blocks: Blocks,
    ) -> Walk<'a> {
        let (low, high) = blocks.chunks();
        let mut heads: Vec<_> = (0..stripes.count()).map(|_| None).collect();
        for (index, chunks) in locked {
            heads[*index] = Some(chunks.range(low..=high).peekable());
        }
        Walk { heads, rest: blocks }
    }
}

impl<'a> Iterator for Walk<'a> {
    /// The first block, the block after the last one, and what is there.
    type Item = (u64, u64, WalkStep<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Blocks { first, end } = self.rest;
        if first >= end {
            return None;
        }
        let number = first / CHUNK_BLOCKS;
        let stripe = (number % self.heads.len() as u64) as usize;
        if let Some((_, chunk)) = self.heads[stripe].as_mut().and_then(|head| head.next_if(|(n, _)| **n == number)) {
            self.rest.first = end.min((number + 1).saturating_mul(CHUNK_BLOCKS));
            return Some((first, self.rest.first, WalkStep::Chunk(number, chunk)));
        }
        let next = self.heads.iter_mut().flatten().filter_map(|head| head.peek().map(|(n, _)| **n)).min();
        self.rest.first = next.map_or(end, |next| next * CHUNK_BLOCKS);
        Some((first, self.rest.first, WalkStep::Gap))
    }
}
