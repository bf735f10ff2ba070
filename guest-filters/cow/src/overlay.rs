//! The overlay: which blocks of the disk differ from next, and where their data is.
//!
//! A block is in one of three states, and never returns to the first. Its data is in scratch, at
//! the same offset as on the disk.
//!
//! Why this is correct with many requests at once:
//!
//! * Next never changes, so data that was read from it is never out of date.
//! * **A request that changes bytes holds an exclusive lock on them. A request that changes the
//!   state of a block holds an exclusive lock on the whole block.** So a write cannot be lost under
//!   a copy of the block that another request is making.
//! * A block becomes `ALLOCATED` only when all of it is in scratch. From then on scratch always
//!   holds a valid value for each of its bytes: punching it, when the block becomes `ZERO`, leaves
//!   zeroes, and these are the block's values then.
//! * **Reads hold no lock.** A read looks at a state and then fetches the data. Each byte that it
//!   fetches was the byte's value at some moment during the read: next's data at the moment when
//!   the read looked at the state, scratch's data at the moment when the read fetched it. A write
//!   that was answered before the read began has set its state before, so the read sees it.
//! * **A read joins a copy of its blocks that is in progress**, if blocks are prefetched: it waits
//!   for a shared lock, releases it, and looks at the state again. This only avoids fetching the
//!   same data twice; the read would be correct without it.

use rbdkit_filter_blocks::{
    ABSENT, BlockStates, CHUNK, Extent, Host, HostError, Mode, PAYLOAD, Wanted, ZeroFlags, copy_up, merge_block,
    merge_edges,
};

/// The map of the states.
pub const MAP: u32 = 0;

/// The block's data is in scratch.
const ALLOCATED: u8 = 1;
/// The block is zero, whatever scratch holds.
const ZERO: u8 = 2;

/// The states of blocks that are not wholly in scratch.
const NOT_ALLOCATED: u8 = 1 << ABSENT | 1 << ZERO;

/// How a cache request treats blocks that are not in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRequests {
    /// It ignores them: next cannot cache.
    Ignore,
    /// It makes next cache them.
    Forward,
    /// It copies them into the overlay.
    CopyUp,
}

/// How a read treats blocks that are not in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentReads {
    /// It reads them from next.
    Read,
    /// It first waits for requests that are copying them into the overlay.
    Join,
    /// It copies them into the overlay.
    CopyUp,
}

/// The overlay, as one request sees it.
pub struct Overlay<'h, H: Host> {
    host: &'h H,
    states: BlockStates<'h, H>,
}

impl<'h, H: Host> Overlay<'h, H> {
    /// An overlay of blocks of 2^`bits` bytes.
    pub fn new(host: &'h H, bits: u32) -> Self {
        Overlay { host, states: BlockStates::new(host, MAP, bits) }
    }

    /// Fills the payload.
    pub fn read(&self, offset: u64, length: u32, absent: AbsentReads) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        let copies = absent == AbsentReads::CopyUp && self.states.any_in(offset, end, 1 << ABSENT);
        if copies {
            self.states.lock(offset, end, Mode::Exclusive)?;
        }
        let mut from = offset;
        let mut joins = absent == AbsentReads::Join;
        while from < end {
            let (state, to) = self.states.run_at(from, end);
            if state == ABSENT && joins {
                joins = false;
                self.host.lock(from, end - from, Mode::Shared)?;
                self.host.unlock();
                continue;
            }
            let (part, at) = ((to - from) as u32, (from - offset) as u32);
            match state {
                ALLOCATED => self.host.scratch_pread(from, part, PAYLOAD, at)?,
                ZERO => self.host.clear(PAYLOAD, at, part),
                _ if copies => {
                    let wanted = Wanted { offset: from, end: to, at };
                    copy_up(&self.states, self.states.blocks(from, to), ALLOCATED, Some(wanted))?;
                }
                _ => self.host.next_pread(from, part, PAYLOAD, at)?,
            }
            from = to;
        }
        Ok(())
    }

    /// Writes the payload into the overlay.
    pub fn write(&self, offset: u64, length: u32) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        self.host.lock(offset, length.into(), Mode::Exclusive)?;
        if self.states.run_at(offset, end) == (ALLOCATED, end) {
            return self.host.scratch_pwrite(offset, length, PAYLOAD, 0);
        }
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        if touched.partial().any(|block| self.states.is_in(block, NOT_ALLOCATED)) {
            self.host.unlock();
            self.states.lock(offset, end, Mode::Exclusive)?;
        }
        let to_allocated = (NOT_ALLOCATED, ALLOCATED);
        let (from, to) = merge_edges(&self.states, (offset, end), touched, PAYLOAD, size, to_allocated)?;
        if from < to {
            self.host.scratch_pwrite(from, (to - from) as u32, PAYLOAD, (from - offset) as u32)?;
            // Those of the blocks that are touched in part are ALLOCATED already.
            let (first, count) = self.states.blocks(from, to);
            self.states.set(first, count, NOT_ALLOCATED, ALLOCATED);
        }
        Ok(())
    }

    /// Makes a range read as zero. Trim requests do the same. With `fast` it fails if it would have
    /// to copy data. The other flags make no difference: nothing is durable, and holes are always
    /// allowed.
    pub fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), H::Error> {
        let end = offset + length;
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        self.states.lock(offset, end, Mode::Exclusive)?;
        if flags.fast && touched.partial().any(|block| self.states.state(block) == ABSENT) {
            return Err(H::Error::NOT_SUPPORTED);
        }
        for block in touched.partial() {
            let (start, stop) = self.states.block_size.span(block, 1, size);
            let (lo, hi) = (offset.max(start), end.min(stop));
            match self.states.state(block) {
                ZERO => {}
                ALLOCATED => self.host.scratch_punch(lo, hi - lo)?,
                _ => merge_block(&self.states, block, size, (NOT_ALLOCATED, ALLOCATED), |temp| {
                    self.host.clear(temp, (lo - start) as u32, (hi - lo) as u32);
                })?,
            }
        }
        if touched.whole_count > 0 {
            let (first, count) = (touched.first_whole, touched.whole_count);
            let allocated = self.states.set(first, count, 1 << ALLOCATED, ZERO);
            self.states.set(first, count, 1 << ABSENT, ZERO);
            if allocated > 0 {
                let (start, stop) = self.states.block_size.span(first, count, size);
                // The blocks are zero already. A failure to free their space is not a failure of
                // the request.
                let _ = self.host.scratch_punch(start, stop - start);
            }
        }
        Ok(())
    }

    /// Serves a cache request.
    pub fn cache(&self, offset: u64, length: u64, how: CacheRequests) -> Result<(), H::Error> {
        let end = offset + length;
        let mut from = offset;
        while how != CacheRequests::Ignore && from < end {
            // Finding the next absent block skips all others at once, however many there are.
            match self.states.find(self.states.block_size.block_at(from), 1 << ABSENT) {
                Some(block) => from = from.max(self.states.block_size.start(block)),
                None => break,
            }
            if from >= end {
                break;
            }
            let (_, mut to) = self.states.run_at(from, end);
            if how == CacheRequests::CopyUp {
                to = to.min(self.states.step_end(from, CHUNK));
                self.copy_absent(from, to)?;
            } else {
                self.host.next_cache(from, to - from)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Copies those blocks of a range that are not in the overlay.
    fn copy_absent(&self, offset: u64, end: u64) -> Result<(), H::Error> {
        self.states.lock(offset, end, Mode::Exclusive)?;
        let mut from = offset;
        while from < end {
            let (state, to) = self.states.run_at(from, end);
            if state == ABSENT {
                copy_up(&self.states, self.states.blocks(from, to), ALLOCATED, None)?;
            }
            from = to;
        }
        self.host.unlock();
        Ok(())
    }

    /// If all of a range is as in next, how far that is known to go on: at least to its end. Then
    /// next's extents are the answer.
    pub fn as_next_until(&self, offset: u64, length: u64) -> Result<Option<u64>, H::Error> {
        let end = offset + length;
        Ok(Some(self.states.as_next_until(offset, end, 1 << ABSENT)?).filter(|to| *to >= end))
    }

    /// The extents that a client would read: from `offset` on, without gaps, at least one, and only
    /// one if `one`.
    pub fn extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, H::Error> {
        self.states.extents(offset, offset + length, one, 1 << ABSENT, ZERO)
    }
}
