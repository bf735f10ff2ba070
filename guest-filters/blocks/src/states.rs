//! The states of an export's blocks, which are in one of the host's maps.

use crate::block_size::BlockSize;
use crate::host::{Extent, Host, Mode};

/// How many blocks a request for extents looks at beyond its range. The host looks at 2^16 blocks
/// in a few microseconds. With blocks of 64 KiB they are 4 GiB, the most that one extent of the
/// protocol can describe.
const BLOCKS_BEYOND: u64 = 1 << 16;

/// How many runs of different states a request for extents joins beyond its range.
const RUNS_BEYOND: u32 = 64;

/// The state of every block at first: only next has its data.
pub const ABSENT: u8 = 0;

/// The states of the blocks, as one call sees them. In a set of states, bit n stands for state n.
/// Ranges are in bytes, must not be empty, and are given as offset and end.
pub struct BlockStates<'h, H: Host> {
    /// The host.
    pub host: &'h H,
    /// The size of the blocks.
    pub block_size: BlockSize,
    map: u32,
}

impl<'h, H: Host> BlockStates<'h, H> {
    /// The states in the map `map`, of blocks of 2^`bits` bytes.
    pub fn new(host: &'h H, map: u32, bits: u32) -> Self {
        BlockStates { host, block_size: BlockSize::new(bits), map }
    }

    /// The state of one block.
    pub fn state(&self, block: u64) -> u8 {
        self.run(block, 1).0
    }

    /// Whether a block is in one of `states`.
    pub fn is_in(&self, block: u64, states: u8) -> bool {
        states >> self.state(block) & 1 == 1
    }

    /// The state of block `first`, and how many blocks from there on have it (1 to `limit`).
    pub fn run(&self, first: u64, limit: u64) -> (u8, u64) {
        self.host.run(self.map, first, limit)
    }

    /// The state at `offset`, and the offset where the run of that state ends, at most `end`.
    pub fn run_at(&self, offset: u64, end: u64) -> (u8, u64) {
        let (first, limit) = self.blocks(offset, end);
        let (state, count) = self.run(first, limit);
        (state, end.min(self.block_size.start(first + count)))
    }

    /// The blocks that the range touches, as the first one and their number.
    pub fn blocks(&self, offset: u64, end: u64) -> (u64, u64) {
        (self.block_size.block_at(offset), self.block_size.count(offset, end))
    }

    /// The end of a step that starts at `offset`: a multiple of the block size, so that the next
    /// step starts with a whole block. A step has at most `max` bytes, or one block if blocks are
    /// larger.
    pub fn step_end(&self, offset: u64, max: u64) -> u64 {
        self.block_size.start(self.block_size.block_at(offset)) + self.block_size.bytes().max(max)
    }

    /// The first block, from `first` on, in one of `states`.
    pub fn find(&self, first: u64, states: u8) -> Option<u64> {
        self.host.find(self.map, first, states)
    }

    /// Whether the range touches a block in one of `states`.
    pub fn any_in(&self, offset: u64, end: u64, states: u8) -> bool {
        self.find(self.block_size.block_at(offset), states)
            .is_some_and(|block| block <= self.block_size.block_at(end - 1))
    }

    /// Sets those blocks that are in one of `states` to `to`. Returns how many they were.
    pub fn set(&self, first: u64, count: u64, states: u8, to: u8) -> u64 {
        self.host.set(self.map, first, count, states, to)
    }

    /// How many blocks are in `state`, which must not be 0.
    pub fn count(&self, state: u8) -> u64 {
        self.host.count(self.map, state)
    }

    /// Waits for a lock on all blocks that the range touches.
    ///
    /// # Errors
    /// If the host does not grant the lock.
    pub fn lock(&self, offset: u64, end: u64, mode: Mode) -> Result<(), H::Error> {
        let start = self.block_size.start(self.block_size.block_at(offset));
        let stop = self.block_size.start(self.block_size.block_at(end - 1) + 1);
        self.host.lock(start, stop - start, mode)
    }

    /// How far the blocks from `offset` on are known to be as next: in one of the states `as_next`.
    /// `offset` if the first is not, and at most somewhat beyond `end`.
    ///
    /// # Errors
    /// Those of [`Host::size`].
    pub fn as_next_until(&self, offset: u64, end: u64, as_next: u8) -> Result<u64, H::Error> {
        let limit = self.limit(end)?;
        let (mut to, mut beyond) = (offset, 0);
        while to < limit && beyond < RUNS_BEYOND {
            let (state, stop) = self.run_at(to, limit);
            if as_next >> state & 1 == 0 {
                break;
            }
            to = stop;
            beyond += u32::from(to >= end);
        }
        Ok(to)
    }

    /// How far to look for the end of the run that goes on at `end`.
    fn limit(&self, end: u64) -> Result<u64, H::Error> {
        Ok(end.saturating_add(BLOCKS_BEYOND * self.block_size.bytes()).min(self.host.size()?))
    }

    /// The extents of a range: from `offset` on, without gaps, at least one, and only one if `one`.
    /// Blocks in one of `as_next` are as next says. Blocks in state `zero` are holes that read as
    /// zero, and all others are data. Unless `one`, the last extent runs on beyond `end` as
    /// far as is cheap to find out.
    ///
    /// # Errors
    /// Those of next.
    pub fn extents(&self, offset: u64, end: u64, one: bool, as_next: u8, zero: u8) -> Result<Vec<Extent>, H::Error> {
        let limit = if one { end } else { self.limit(end)? };
        let mut list = Vec::new();
        let mut from = offset;
        while from < end && (list.is_empty() || !one) {
            let (state, mut to) = self.run_at(from, limit);
            if as_next >> state & 1 == 1 {
                if !one {
                    // One question to next for all neighbours that are as next.
                    to = self.as_next_until(from, end, as_next)?.max(to);
                }
                let part = to.min(end);
                list.extend(self.host.next_extents(from, part - from, to, one)?);
                match list.last() {
                    Some(last) if last.offset + last.length >= part => {}
                    // Next answered for a part of the range only, so the list must end there.
                    _ => break,
                }
            } else {
                let zero = state == zero;
                list.push(Extent { offset: from, length: to - from, hole: zero, zero });
            }
            from = to;
        }
        Ok(list)
    }
}
