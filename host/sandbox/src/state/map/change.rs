//! One change of a map: what it does to the chunks, and what memory it needs.

use std::collections::btree_map::Entry;
use std::ops::Deref;

use super::chunk::{Chunk, StateDeltas};
use super::stripes::{Blocks, Chunks, LockedStripes, first_in_stripe};
use rbdkit_plugin_api::Quota;

/// What a chunk's entry is charged: 32 bytes in a tree node that may be little more than a third
/// full.
pub(in crate::state) const ENTRY_BYTES: u64 = 96;
/// What a mixed chunk is charged in addition: 512 bytes of words and the allocator's header.
pub(in crate::state) const WORDS_BYTES: u64 = 528;

/// The arguments of a `set`, checked.
#[derive(Clone, Copy)]
pub(in crate::state) struct Change {
    pub(in crate::state) blocks: Blocks,
    /// Which blocks are changed: those in one of these states (bit n stands for state n).
    pub(in crate::state) states: u8,
    /// The state that they get.
    pub(in crate::state) to: u8,
}

/// Where the memory for a change comes from.
pub(in crate::state) enum MemorySource {
    /// It is taken from the quota, and the change fails if there is not enough.
    Take,
    /// This many bytes were taken from the quota before.
    Reserved(u64),
    /// It is taken from the quota, beyond the limit if need be.
    Overdraw,
}

/// What is needed to undo a change.
#[derive(Default)]
pub(in crate::state) struct UndoLog {
    /// The blocks that changed and the state that they had: first block, count, state.
    pub(in crate::state) runs: Vec<(u64, u64, u8)>,
    /// Bytes that the change has freed. They stay taken from the quota, so that undoing the change
    /// finds them.
    pub(in crate::state) kept: u64,
}

impl Change {
    /// Whether it creates chunks where the map keeps none.
    fn makes_chunks(&self) -> bool {
        self.states & 1 != 0 && self.to != 0
    }

    /// The most memory that it can need in any state of the map: entries for all chunks, and words
    /// for the two chunks at its ends. A chunk that it covers whole is never split.
    pub(in crate::state) fn max_bytes(&self) -> u64 {
        let (low, high) = self.blocks.chunks();
        let entries = if self.makes_chunks() { high - low + 1 } else { 0 };
        entries.saturating_mul(ENTRY_BYTES).saturating_add(2 * WORDS_BYTES)
    }

    /// The most chunks that it may have to visit: no more than fit into the quota for maps.
    pub(in crate::state) fn max_chunks(&self, memory: &Quota) -> u64 {
        let (low, high) = self.blocks.chunks();
        (high - low + 1).min(memory.limit() / ENTRY_BYTES)
    }

    /// The memory that it needs, if it touches only chunk `number` of the locked `chunks`.
    pub(super) fn bytes_for_one(&self, chunks: &Chunks, number: u64) -> u64 {
        let (at, end) = self.blocks.within(number);
        match chunks.get(&number) {
            Some(chunk) if chunk.would_split(at, end, self.states, self.to) => WORDS_BYTES,
            None if self.makes_chunks() => ENTRY_BYTES + WORDS_BYTES,
            _ => 0,
        }
    }

    /// The most memory that it needs, now that the stripes of all its chunks are locked.
    pub(super) fn bytes_for_many<G: Deref<Target = Chunks>>(&self, locked: &LockedStripes<G>) -> u64 {
        let (low, high) = self.blocks.chunks();
        if !self.makes_chunks() {
            return 2 * WORDS_BYTES;
        }
        let there: u64 = locked.iter().map(|(_, chunks)| chunks.range(low..=high).count() as u64).sum();
        (high - low + 1 - there).saturating_mul(ENTRY_BYTES).saturating_add(2 * WORDS_BYTES)
    }
}

/// What a change did, while the locks are held.
#[derive(Default)]
pub(super) struct Effect {
    /// How many blocks were set, including those that were in the new state before.
    pub(super) set: u64,
    /// By how many bytes the map has grown.
    pub(super) grown: i64,
    pub(super) deltas: StateDeltas,
}

impl Effect {
    /// Changes one chunk, and removes it if all its blocks have state 0 afterwards.
    pub(super) fn apply_to_chunk(&mut self, chunks: &mut Chunks, number: u64, change: &Change) {
        let (at, end) = change.blocks.within(number);
        let mut entry = match chunks.entry(number) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(_) if change.states & 1 == 0 => return,
            Entry::Vacant(_) if change.to == 0 => {
                self.set += end - at;
                return;
            }
            Entry::Vacant(entry) => {
                self.grown += ENTRY_BYTES as i64;
                entry.insert_entry(Chunk::uniform(0))
            }
        };
        let chunk = entry.get_mut();
        let was_mixed = chunk.is_mixed();
        self.set += chunk.set(at, end, change.states, change.to, &mut self.deltas);
        self.grown += (i64::from(chunk.is_mixed()) - i64::from(was_mixed)) * WORDS_BYTES as i64;
        if chunk.is_blank() {
            self.grown -= ENTRY_BYTES as i64;
            entry.remove();
        }
    }

    /// Changes the chunks of one stripe, number `index` of `stripes`.
    pub(super) fn apply_to_stripe(&mut self, chunks: &mut Chunks, index: u64, stripes: u64, change: &Change) {
        let (low, high) = change.blocks.chunks();
        let mut number = first_in_stripe(low, index, stripes);
        if change.makes_chunks() {
            while number <= high {
                self.apply_to_chunk(chunks, number, change);
                number += stripes;
            }
            return;
        }
        // Gaps stay gaps, so only existing chunks are visited, however large the range is.
        let mut there = 0;
        if number <= high {
            let numbers: Vec<u64> = chunks.range(number..=high).map(|(number, _)| *number).collect();
            for number in numbers {
                let (at, end) = change.blocks.within(number);
                self.apply_to_chunk(chunks, number, change);
                there += end - at;
            }
        }
        if change.states & 1 != 0 {
            self.set += change.blocks.count_in_stripe(index, stripes) - there;
        }
    }
}
