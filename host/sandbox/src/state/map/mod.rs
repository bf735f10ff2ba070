//! Maps of blocks: one of four states for each block, sparse, with atomic functions on ranges.
//!
//! A map is cut into chunks of 2048 blocks ([`chunk`]). A map keeps nothing for a chunk whose
//! blocks all have state 0, and only one entry for a chunk whose blocks all have the same state. So
//! the memory that a map takes depends on how mixed the blocks are and not on the size of the
//! export, which may be 2^63 - 1 bytes. Chunks are spread over stripes, each behind a lock of its
//! own ([`stripes`]).
//!
//! **Atomic.** A function locks all stripes that its range touches, in ascending order, and holds
//! them while it works. So its answer was true at one moment. If two callers set the same block
//! under the same condition, exactly one of them counts it. Most calls concern one chunk and take
//! one lock.
//!
//! **Memory.** Every chunk is charged to the filter's quota before anything changes. The contract
//! gives `set` no error, so a `set` that finds no memory changes nothing and traps: the request
//! fails and the data stays right. The alternative is to reserve the worst case when a map is
//! sized, but that would refuse large exports of which little is ever used. Held-back and undoable
//! changes are charged as well ([`Changes`](super::Changes)). If other calls have changed
//! neighbouring blocks in the meantime, an undo may exceed the quota by the words of the two chunks
//! at the ends of the range.

mod change;
mod chunk;
mod stripes;

#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rbdkit_plugin_api::Errno;

use self::change::Effect;
pub(super) use self::change::{Change, MemorySource, UndoLog};
pub(super) use self::chunk::CHUNK_BLOCKS;
pub(super) use self::stripes::Blocks;
use self::stripes::{Stripes, Walk, WalkStep};
use super::misuse::Misuse;
use rbdkit_plugin_api::Quota;

/// A map was used before it was sized.
pub(super) const NOT_SIZED: Misuse = Misuse("a map is used before it was sized");
/// The filter's quota for maps is used up.
pub(super) const NO_MEMORY: Misuse = Misuse("the memory for maps is used up");
const OUTSIDE: Misuse = Misuse("a range of blocks ends outside of its map");
const NO_STATE: Misuse = Misuse("a map has the states 0 to 3");
const NOT_COUNTED: Misuse = Misuse("a map counts the states 1 to 3");

/// Bytes charged for a stripe: its cache line.
pub(super) const STRIPE_BYTES: u64 = 64;
/// Bytes charged for one run in an undo log: 24 bytes in a vector that may be half empty.
pub(super) const LOGGED_RUN_BYTES: u64 = 48;

/// Blocks in a row that have the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The state, 0 to 3.
    pub state: u8,
    /// How many blocks.
    pub count: u64,
}

/// What is fixed when a map is first sized.
struct Shape {
    /// Bytes in a block.
    block_size: u32,
    stripes: Stripes,
}

/// One map.
pub struct Map {
    shape: OnceLock<Shape>,
    blocks: AtomicU64,
    /// How many blocks have states 1 to 3.
    counts: [AtomicU64; 3],
    /// Bytes that are charged to `quota` for this map.
    charged: AtomicU64,
    pub(super) quota: Arc<Quota>,
}

impl Map {
    /// A map without a size. Its memory is charged to `quota`.
    pub fn new(quota: Arc<Quota>) -> Map {
        Map {
            shape: OnceLock::new(),
            blocks: AtomicU64::new(0),
            counts: Default::default(),
            charged: AtomicU64::new(0),
            quota,
        }
    }

    /// Sizes the map: it gets as many blocks of `block_size` bytes as cover `bytes`. A map never
    /// shrinks: a smaller size than before changes nothing.
    ///
    /// # Errors
    /// EINVAL if blocks have 0 bytes, or another size than before. ENOMEM if the quota is used up.
    pub fn resize(&self, block_size: u32, bytes: u64) -> Result<(), Errno> {
        if block_size == 0 {
            return Err(Errno::Einval);
        }
        let blocks = bytes.div_ceil(u64::from(block_size));
        if self.shape.get().is_none() {
            let stripes = Stripes::for_blocks(blocks);
            let cost = stripes.count() * STRIPE_BYTES;
            if !self.quota.take(cost) {
                return Err(Errno::Enomem);
            }
            match self.shape.set(Shape { block_size, stripes }) {
                Ok(()) => _ = self.charged.fetch_add(cost, Ordering::Relaxed),
                // Another connection sized it at the same time.
                Err(_) => self.quota.give(cost),
            }
        }
        if self.shape.get().is_none_or(|shape| shape.block_size != block_size) {
            return Err(Errno::Einval);
        }
        // A scratch file sizes its page map before each write. The check avoids a store, which
        // would invalidate the cache line of every reader.
        if self.blocks() < blocks {
            self.blocks.fetch_max(blocks, Ordering::AcqRel);
        }
        Ok(())
    }

    fn stripes(&self) -> Result<&Stripes, Misuse> {
        self.shape.get().map(|shape| &shape.stripes).ok_or(NOT_SIZED)
    }

    /// How many blocks it has. 0 before it was sized.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// The state of block `first`, and how many blocks from there on, at most `limit`, have it.
    /// Past the end of the map the state is 0 and the count is 0.
    ///
    /// # Errors
    /// The map was not sized.
    pub fn get_run(&self, first: u64, limit: u64) -> Result<BlockRun, Misuse> {
        let stripes = self.stripes()?;
        let end = first.saturating_add(limit).min(self.blocks());
        if first >= end {
            return Ok(BlockRun { state: 0, count: 0 });
        }
        let blocks = Blocks { first, end };
        let number = first / CHUNK_BLOCKS;
        // Most runs end in the chunk that they begin in.
        if let Some(chunk) = stripes.read(stripes.index(number)).get(&number) {
            let (at, to) = blocks.within(number);
            let (state, count) = chunk.run(at, to);
            if at + count < to || number == blocks.chunks().1 {
                return Ok(BlockRun { state, count });
            }
        } else if number == blocks.chunks().1 {
            return Ok(BlockRun { state: 0, count: end - first });
        }
        let locked = stripes.lock(blocks.chunks(), Stripes::read);
        let mut run = BlockRun { state: 0, count: 0 };
        for (from, to, piece) in Walk::new(stripes, &locked, blocks) {
            let (state, count) = match piece {
                WalkStep::Gap => (0, to - from),
                WalkStep::Chunk(number, chunk) => {
                    let base = number * CHUNK_BLOCKS;
                    chunk.run(from - base, to - base)
                }
            };
            if run.count > 0 && state != run.state {
                break;
            }
            run = BlockRun { state, count: run.count + count };
            if count < to - from {
                break;
            }
        }
        Ok(run)
    }

    /// The first block from `first` on whose state is one of `states` (bit n stands for state n).
    ///
    /// # Errors
    /// The map was not sized, or there are no such states.
    pub fn find(&self, first: u64, states: u8) -> Result<Option<u64>, Misuse> {
        let stripes = self.stripes()?;
        if states > 0b1111 {
            return Err(NO_STATE);
        }
        let end = self.blocks();
        let counted = (1..4u8).any(|state| states & (1 << state) != 0 && self.counter(state) > 0);
        if first >= end || (states & 1 == 0 && !counted) {
            return Ok(None);
        }
        let blocks = Blocks { first, end };
        let number = first / CHUNK_BLOCKS;
        {
            let chunks = stripes.read(stripes.index(number));
            let (at, to) = blocks.within(number);
            let found = match chunks.get(&number) {
                Some(chunk) => chunk.find(at, to, states),
                None => (states & 1 != 0).then_some(at),
            };
            if let Some(found) = found {
                return Ok(Some(number * CHUNK_BLOCKS + found));
            }
        }
        let locked = stripes.lock(blocks.chunks(), Stripes::read);
        Ok(Walk::new(stripes, &locked, blocks).find_map(|(from, to, piece)| match piece {
            WalkStep::Gap => (states & 1 != 0).then_some(from),
            WalkStep::Chunk(number, chunk) => {
                let base = number * CHUNK_BLOCKS;
                chunk.find(from - base, to - base, states).map(|found| base + found)
            }
        }))
    }

    /// Sets those of `count` blocks from `first` whose state is one of `states` (bit n stands for
    /// state n) to `to`, at once. Answers how many they were, including those that were in `to`
    /// already.
    ///
    /// # Errors
    /// The map was not sized, there are no such states, the range ends outside of the map, or there
    /// is no memory. Nothing was changed.
    pub fn set(&self, first: u64, count: u64, states: u8, to: u8) -> Result<u64, Misuse> {
        match self.change(first, count, states, to)? {
            Some(change) => self.apply(&change, MemorySource::Take, None),
            None => Ok(0),
        }
    }

    /// How many blocks have `state`, 1 to 3.
    ///
    /// # Errors
    /// The map was not sized, or there is no such state.
    pub fn count(&self, state: u8) -> Result<u64, Misuse> {
        self.stripes()?;
        if !(1..=3).contains(&state) {
            return Err(NOT_COUNTED);
        }
        Ok(self.counter(state))
    }

    fn counter(&self, state: u8) -> u64 {
        self.counts[usize::from(state) - 1].load(Ordering::Relaxed)
    }

    /// Whether every block has state 0.
    pub(super) fn is_blank(&self) -> bool {
        (1..4).all(|state| self.counter(state) == 0)
    }

    /// Checks the arguments of a `set`. None if the range is empty.
    pub(super) fn change(&self, first: u64, count: u64, states: u8, to: u8) -> Result<Option<Change>, Misuse> {
        self.stripes()?;
        if states > 0b1111 || to > 3 {
            return Err(NO_STATE);
        }
        let end = first.checked_add(count).filter(|end| *end <= self.blocks()).ok_or(OUTSIDE)?;
        Ok((count > 0).then_some(Change { blocks: Blocks { first, end }, states, to }))
    }

    /// Makes a change, and returns how many blocks it set. `log` gets the blocks whose state
    /// changes.
    ///
    /// # Errors
    /// There is no memory. Nothing was changed.
    pub(super) fn apply(
        &self,
        change: &Change,
        memory: MemorySource,
        mut log: Option<&mut UndoLog>,
    ) -> Result<u64, Misuse> {
        let stripes = self.stripes()?;
        let (low, high) = change.blocks.chunks();
        let mut effect = Effect::default();
        if low == high {
            let mut chunks = stripes.write(stripes.index(low));
            let need = change.bytes_for_one(&chunks, low);
            if let Some(log) = &mut log {
                let piece = chunks.get(&low).map_or(WalkStep::Gap, |chunk| WalkStep::Chunk(low, chunk));
                self.log(&mut log.runs, change, std::iter::once((change.blocks.first, change.blocks.end, piece)))?;
            }
            let taken = self.reserve(memory, || need)?;
            effect.apply_to_chunk(&mut chunks, low, change);
            self.settle(&effect, taken, log);
        } else {
            let mut locked = stripes.lock((low, high), Stripes::write);
            let taken = self.reserve(memory, || change.bytes_for_many(&locked))?;
            if let Some(log) = &mut log
                && let Err(trap) = self.log(&mut log.runs, change, Walk::new(stripes, &locked, change.blocks))
            {
                self.quota.give(taken);
                return Err(trap);
            }
            for (index, chunks) in &mut locked {
                effect.apply_to_stripe(chunks, *index as u64, stripes.count(), change);
            }
            self.settle(&effect, taken, log);
        }
        Ok(effect.set)
    }

    /// Takes the memory that a change may need from its source. Answers how many bytes were taken.
    fn reserve(&self, memory: MemorySource, need: impl FnOnce() -> u64) -> Result<u64, Misuse> {
        match memory {
            MemorySource::Reserved(taken) => Ok(taken),
            MemorySource::Take => {
                let need = need();
                if need == 0 || self.quota.take(need) { Ok(need) } else { Err(NO_MEMORY) }
            }
            MemorySource::Overdraw => {
                let need = need();
                self.quota.overdraw(need);
                Ok(need)
            }
        }
    }

    /// Counts what a change did, while its locks are still held. Gives back the memory that it did
    /// not need and the memory that it freed. If it may be undone, `log` keeps the memory that it
    /// freed.
    fn settle(&self, effect: &Effect, taken: u64, log: Option<&mut UndoLog>) {
        let mut back = taken as i64 - effect.grown;
        if let Some(log) = log
            && effect.grown < 0
        {
            log.kept = effect.grown.unsigned_abs();
            back = taken as i64;
        }
        if back >= 0 {
            self.quota.give(back as u64);
        } else {
            self.quota.overdraw(back.unsigned_abs());
        }
        if effect.grown != 0 {
            self.charged.fetch_add(effect.grown as u64, Ordering::Relaxed);
        }
        for (counter, delta) in self.counts.iter().zip(&effect.deltas[1..]) {
            if *delta != 0 {
                counter.fetch_add(*delta as u64, Ordering::Relaxed);
            }
        }
    }

    /// Writes the blocks that a change is about to change to `log`, and charges for the entries.
    fn log<'a>(
        &self,
        log: &mut Vec<(u64, u64, u8)>,
        change: &Change,
        pieces: impl Iterator<Item = (u64, u64, WalkStep<'a>)>,
    ) -> Result<(), Misuse> {
        let mut note = |from: u64, to: u64, state: u8| {
            if change.states & (1 << state) == 0 || state == change.to {
                return Ok(());
            }
            match log.last_mut() {
                Some((first, count, old)) if *old == state && *first + *count == from => *count += to - from,
                _ if !self.quota.take(LOGGED_RUN_BYTES) => return Err(NO_MEMORY),
                _ => log.push((from, to - from, state)),
            }
            Ok(())
        };
        for (mut from, to, piece) in pieces {
            match piece {
                WalkStep::Gap => note(from, to, 0)?,
                WalkStep::Chunk(number, chunk) => {
                    let base = number * CHUNK_BLOCKS;
                    while from < to {
                        let (state, count) = chunk.run(from - base, to - base);
                        note(from, from + count, state)?;
                        from += count;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.quota.give(*self.charged.get_mut());
    }
}
