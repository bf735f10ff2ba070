//! The cache: which blocks of next are in scratch, and which of them next does not have yet.
//!
//! Why this is correct with many requests at once, and when one of them fails half way:
//!
//! * A request that looks at cached data holds a lock on its bytes: a shared lock to read them or
//!   to write them back, an exclusive lock to change them. **A request that changes the state of a
//!   block holds the whole block.** So reclaiming never frees data that another request is reading,
//!   and a block that is being written back cannot change before it becomes `CLEAN`.
//! * A block is `CLEAN` only while scratch and next hold the same data. It becomes `DIRTY` *before*
//!   its bytes change in scratch. Before next changes under a `CLEAN` block, the block is dropped
//!   from the cache. So wherever a request ends, a read now returns the same as a read after
//!   reclaiming.
//! * An absent block gets another state only when all of it is in scratch.
//! * A `DIRTY` or `ZEROED` block is dropped only when next has its data.

use rbdkit_filter_blocks::{ABSENT, BlockStates, CHUNK, Host};

use crate::lru::Lru;

/// The map of the states.
pub const MAP: u32 = 0;

/// The block's data is in scratch, and next has the same.
pub const CLEAN: u8 = 1;
/// The block's data is in scratch, and next has older data.
pub const DIRTY: u8 = 2;
/// The block is zero, whatever scratch holds, and next has older data. It may become a hole.
pub const ZEROED: u8 = 3;

/// All states.
pub const ANY: u8 = 1 << ABSENT | 1 << CLEAN | 1 << DIRTY | 1 << ZEROED;
/// The states of blocks that must be written back.
pub const UNWRITTEN: u8 = 1 << DIRTY | 1 << ZEROED;
/// The states of blocks that are not in scratch. A write to a part of such a block must store all
/// of it.
pub const NOT_STORED: u8 = 1 << ABSENT | 1 << ZEROED;

/// When writes reach next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// With a flush.
    Writeback,
    /// At once.
    Writethrough,
    /// Only when the cache grows too large.
    Unsafe,
}

/// How many blocks may be in scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimit {
    /// If there are more than this, blocks are reclaimed ...
    pub high: u64,
    /// ... until there are no more than this.
    pub low: u64,
}

/// What next can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextCapabilities {
    pub write: bool,
    pub flush: bool,
    pub fua: bool,
    pub trim: bool,
    pub zero: bool,
    pub multi_conn: bool,
}

/// The cache, as one request sees it.
pub struct Cache<'h, H: Host> {
    pub(crate) host: &'h H,
    pub(crate) states: BlockStates<'h, H>,
    pub(crate) policy: Policy,
    pub(crate) limit: Option<BlockLimit>,
    pub(crate) next: NextCapabilities,
}

impl<'h, H: Host> Cache<'h, H> {
    /// A cache of blocks of 2^`bits` bytes.
    pub fn new(host: &'h H, bits: u32, policy: Policy, limit: Option<BlockLimit>, next: NextCapabilities) -> Self {
        Cache { host, states: BlockStates::new(host, MAP, bits), policy, limit, next }
    }

    /// Records that cached blocks were used.
    pub(crate) fn touch(&self, offset: u64, end: u64) {
        if let Some(limit) = self.limit {
            Lru::touch(self.host, self.states.block_size, self.states.blocks(offset, end), limit.low);
        }
    }

    /// How many blocks are moved in one step.
    pub(crate) fn step_blocks(&self) -> u64 {
        (CHUNK / self.states.block_size.bytes()).max(1)
    }

    /// The range without those blocks in `excluded`, which it touches in part.
    pub(crate) fn without(
        &self,
        (offset, end): (u64, u64),
        excluded: impl Iterator<Item = u64>,
        size: u64,
    ) -> (u64, u64) {
        let (mut from, mut to) = (offset, end);
        for block in excluded {
            let (start, stop) = self.states.block_size.span(block, 1, size);
            if offset >= start { from = stop.min(end) } else { to = start }
        }
        (from, to)
    }

    /// Frees the scratch space of those blocks that are absent. The caller has locked the blocks.
    pub(crate) fn free_unused(&self, first: u64, count: u64, size: u64) {
        let (start, stop) = self.states.block_size.span(first, count, size);
        let mut from = start;
        while from < stop {
            let (state, to) = self.states.run_at(from, stop);
            if state == ABSENT {
                // A failure only leaves space allocated.
                let _ = self.host.scratch_punch(from, to - from);
            }
            from = to;
        }
    }
}
