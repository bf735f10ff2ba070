//! The overlay: which blocks of the disk differ from next, and where their data is.
//!
//! A block is in one of three states, and never goes back to the first. Its data is in scratch, at its own place.
//!
//! Why it is right with many requests at once:
//!
//! * Next never changes, so what was read from it is never out of date.
//! * **Whoever changes bytes holds an exclusive lock on them; whoever changes what a block is made of holds the whole block.** So nothing that
//!   is written can be lost under a copy of the block that somebody else is making.
//! * A block becomes `ALLOCATED` only when all of it is in scratch, and then scratch holds a valid value for each of its bytes for ever:
//!   punching it (the block became `ZERO`) leaves zeroes, which are the block's value then.
//! * **Reads hold no lock.** A read looks at a state and then fetches the data. Whatever happens in between, what it fetches was the
//!   value of each byte at some time between: next's data was, when the state was looked at; scratch's is, when it is fetched, by the rule before.
//!   A request that was answered before the read began has published its state before, so its data cannot be missed.
//! * **A read joins a copy of the block that is under way** where blocks are prefetched: it waits for a lock, gives it back and looks again. That is
//!   only to fetch nothing twice; it is right without.

use rbdkit_filter_blocks::{CHUNK, Extent, Fault, Grid, Host, Mode, PAYLOAD, Temp, Want, copy_up, read_next};

/// The map of states.
pub const MAP: u32 = 0;

/// As in next. The state of every block at first.
pub const NONE: u8 = 0;
/// In scratch.
pub const ALLOCATED: u8 = 1;
/// Zero, whatever scratch holds.
pub const ZERO: u8 = 2;

/// What a cache request does about blocks that are not in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Nothing: next cannot cache.
    Ignore,
    /// The same request goes to next.
    Pass,
    /// They are copied into the overlay.
    CopyUp,
}

/// What a read does about blocks that are not in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It reads them from next.
    Read,
    /// The same, after whoever copies them into the overlay just now.
    Join,
    /// It copies them into the overlay.
    Keep,
}

/// The overlay, as one request sees it.
pub struct Overlay<'h, H: Host> {
    host: &'h H,
    grid: Grid,
}

impl<'h, H: Host> Overlay<'h, H> {
    /// An overlay of blocks of 2^`bits` bytes.
    pub fn new(host: &'h H, bits: u32) -> Self {
        Overlay { host, grid: Grid::new(bits) }
    }

    /// The state at `offset`, and where it ends, at most at `end`.
    fn run(&self, offset: u64, end: u64) -> (u8, u64) {
        let (state, count) = self.host.run(MAP, self.grid.of(offset), self.grid.count(offset, end));
        (state, end.min(self.grid.start(self.grid.of(offset) + count)))
    }

    /// Locks all of the blocks that the range touches.
    fn lock_blocks(&self, offset: u64, end: u64) -> Result<(), H::Error> {
        let first = self.grid.start(self.grid.of(offset));
        let last = self.grid.start(self.grid.of(end - 1) + 1);
        self.host.lock(first, last - first, Mode::Exclusive)
    }

    /// Fills the payload.
    pub fn read(&self, offset: u64, length: u32, missing: Missing) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        let keep = missing == Missing::Keep
            && self.host.find(MAP, self.grid.of(offset), 1 << NONE).is_some_and(|b| b <= self.grid.of(end - 1));
        if keep {
            self.lock_blocks(offset, end)?;
        }
        let mut from = offset;
        let mut joins = missing == Missing::Join;
        while from < end {
            let (state, to) = self.run(from, end);
            if state == NONE && joins {
                joins = false;
                self.host.lock(from, end - from, Mode::Shared)?;
                self.host.unlock();
                continue;
            }
            let (part, at) = ((to - from) as u32, (from - offset) as u32);
            match state {
                ALLOCATED => self.host.scratch_pread(from, part, PAYLOAD, at)?,
                ZERO => self.host.clear(PAYLOAD, at, part),
                _ if keep => {
                    let blocks = (self.grid.of(from), self.grid.count(from, to));
                    let want = Want { offset: from, end: to, at };
                    copy_up(self.host, self.grid, MAP, ALLOCATED, blocks, Some(want))?;
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
        if self.run(offset, end) == (ALLOCATED, end) {
            return self.host.scratch_pwrite(offset, length, PAYLOAD, 0);
        }
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        let must_merge = |block| self.host.run(MAP, block, 1).0 != ALLOCATED;
        if touched.partial().any(must_merge) {
            self.host.unlock();
            self.lock_blocks(offset, end)?;
        }
        let (mut from, mut to) = (offset, end);
        for block in touched.partial().filter(|block| must_merge(*block)) {
            let (start, stop) = self.grid.span(block, 1, size);
            let (lo, hi) = (offset.max(start), end.min(stop));
            self.merge(block, (start, stop), |temp| {
                self.host.copy(temp, (lo - start) as u32, PAYLOAD, (lo - offset) as u32, (hi - lo) as u32);
            })?;
            if lo == from { from = hi } else { to = lo }
        }
        if from < to {
            self.host.scratch_pwrite(from, (to - from) as u32, PAYLOAD, (from - offset) as u32)?;
            // Of these, blocks that are touched in part are ALLOCATED already.
            self.host.set(MAP, self.grid.of(from), self.grid.count(from, to), 1 << NONE | 1 << ZERO, ALLOCATED);
        }
        Ok(())
    }

    /// Makes a whole block out of what it is and `change`. The caller has locked it, and it is not ALLOCATED.
    fn merge(&self, block: u64, (start, stop): (u64, u64), change: impl FnOnce(u32)) -> Result<(), H::Error> {
        let temp = Temp::new(self.host, (stop - start) as u32)?;
        if self.host.run(MAP, block, 1).0 == NONE {
            read_next(self.host, start, stop, temp.id(), 0)?;
        }
        change(temp.id());
        self.host.scratch_pwrite(start, (stop - start) as u32, temp.id(), 0)?;
        self.host.set(MAP, block, 1, 1 << NONE | 1 << ZERO, ALLOCATED);
        Ok(())
    }

    /// Makes a range zero: for zero and trim alike. With `fast`, only if nothing has to be copied for it.
    pub fn zero(&self, offset: u64, length: u64, fast: bool) -> Result<(), H::Error> {
        let end = offset + length;
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        self.lock_blocks(offset, end)?;
        if fast && touched.partial().any(|block| self.host.run(MAP, block, 1).0 == NONE) {
            return Err(H::Error::NOT_SUPPORTED);
        }
        for block in touched.partial() {
            let (start, stop) = self.grid.span(block, 1, size);
            let (lo, hi) = (offset.max(start), end.min(stop));
            match self.host.run(MAP, block, 1).0 {
                ZERO => {}
                ALLOCATED => self.host.scratch_punch(lo, hi - lo)?,
                _ => self.merge(block, (start, stop), |temp| {
                    self.host.clear(temp, (lo - start) as u32, (hi - lo) as u32);
                })?,
            }
        }
        if touched.wholes > 0 {
            let allocated = self.host.set(MAP, touched.whole, touched.wholes, 1 << ALLOCATED, ZERO);
            self.host.set(MAP, touched.whole, touched.wholes, 1 << NONE, ZERO);
            if allocated > 0 {
                let (start, stop) = self.grid.span(touched.whole, touched.wholes, size);
                // It is zero already. That its space could not be freed is no reason to fail.
                let _ = self.host.scratch_punch(start, stop - start);
            }
        }
        Ok(())
    }

    /// Brings a range nearer.
    pub fn cache(&self, offset: u64, length: u64, how: Caching) -> Result<(), H::Error> {
        let end = offset + length;
        let mut from = offset;
        while how != Caching::Ignore && from < end {
            // Found this way the cost is that of the blocks that are missing.
            match self.host.find(MAP, self.grid.of(from), 1 << NONE) {
                Some(block) => from = from.max(self.grid.start(block)),
                None => break,
            }
            if from >= end {
                break;
            }
            let (_, to) = self.run(from, end);
            let to = match how {
                Caching::CopyUp => {
                    let to = to.min(self.grid.start(self.grid.of(from)) + self.grid.block().max(CHUNK));
                    self.copy_missing(from, to)?;
                    to
                }
                _ => {
                    self.host.next_cache(from, to - from)?;
                    to
                }
            };
            from = to;
        }
        Ok(())
    }

    /// Copies those blocks of a range that are not in the overlay.
    fn copy_missing(&self, offset: u64, end: u64) -> Result<(), H::Error> {
        self.lock_blocks(offset, end)?;
        let mut from = offset;
        while from < end {
            let (state, to) = self.run(from, end);
            if state == NONE {
                let blocks = (self.grid.of(from), self.grid.count(from, to));
                copy_up(self.host, self.grid, MAP, ALLOCATED, blocks, None)?;
            }
            from = to;
        }
        self.host.unlock();
        Ok(())
    }

    /// Whether all of a range is as in next, so that next's answer is the answer.
    pub fn untouched(&self, offset: u64, length: u64) -> bool {
        self.run(offset, offset + length) == (NONE, offset + length)
    }

    /// What a client would read: from `offset` on, without gaps, at least one extent; only one if `one`.
    pub fn extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, H::Error> {
        let end = offset + length;
        let mut list = Vec::new();
        let mut from = offset;
        while from < end && (list.is_empty() || !one) {
            let (state, to) = self.run(from, end);
            if state == NONE {
                list.extend(self.host.next_extents(from, to - from, one)?);
                match list.last() {
                    Some(last) if last.offset + last.length >= to => {}
                    // Next knows only a part: so do we.
                    _ => break,
                }
            } else {
                let zero = state == ZERO;
                list.push(Extent { offset: from, length: to - from, hole: zero, zero });
            }
            from = to;
        }
        Ok(list)
    }
}
