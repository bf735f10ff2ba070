//! Writing: into scratch, or through to next.

use rbdkit_filter_blocks::{ABSENT, Host, HostError, Mode, PAYLOAD, merge_edges, write_next};

use crate::cache::{ANY, CLEAN, Cache, DIRTY, NOT_STORED, Policy, UNWRITTEN};
use crate::lru::Lru;

/// Whether data that is written through to next also goes into scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InScratch {
    Keep,
    Drop,
}

impl<H: Host> Cache<'_, H> {
    /// Writes the payload.
    pub fn write(&self, offset: u64, length: u32, fua: bool) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        if self.must_write_through(fua) {
            self.write_through(offset, end, PAYLOAD, fua, InScratch::Keep)?;
        } else {
            self.write_cached(offset, end, PAYLOAD)?;
        }
        self.host.unlock();
        self.make_room(self.states.block_size.count(offset, end));
        Ok(())
    }

    /// Whether a write or zero request must reach next before it is answered.
    pub(crate) fn must_write_through(&self, fua: bool) -> bool {
        self.policy == Policy::Writethrough || fua && self.policy == Policy::Writeback
    }

    /// Writes a buffer into scratch. If scratch is full and nothing can be reclaimed, it writes the
    /// buffer to next. It holds a lock when it returns.
    pub(crate) fn write_cached(&self, offset: u64, end: u64, buf: u32) -> Result<(), H::Error> {
        match self.store(offset, end, buf) {
            Err(error) if error.is_full() => {}
            result => return result,
        }
        self.host.unlock();
        if self.reclaim(self.states.block_size.count(offset, end) + 1) > 0 {
            match self.store(offset, end, buf) {
                Err(error) if error.is_full() => self.host.unlock(),
                result => return result,
            }
        }
        // Without multi-conn, a later flush on another connection would not cover this write.
        self.write_through(offset, end, buf, !self.next.multi_conn, InScratch::Drop)
    }

    /// Writes a buffer into scratch. It holds a lock when it returns.
    fn store(&self, offset: u64, end: u64, buf: u32) -> Result<(), H::Error> {
        self.host.lock(offset, end - offset, Mode::Exclusive)?;
        let length = (end - offset) as u32;
        if self.states.run_at(offset, end) == (DIRTY, end) {
            self.host.scratch_pwrite(offset, length, buf, 0)?;
            self.touch(offset, end);
            return Ok(());
        }
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        if touched.partial().any(|block| self.states.is_in(block, NOT_STORED)) {
            self.host.unlock();
            self.states.lock(offset, end, Mode::Exclusive)?;
        }
        let (from, to) = merge_edges(&self.states, (offset, end), touched, buf, size, (NOT_STORED, DIRTY))?;
        if from < to {
            let (first, count) = self.states.blocks(from, to);
            self.states.set(first, count, 1 << CLEAN, DIRTY);
            self.host.scratch_pwrite(from, (to - from) as u32, buf, (from - offset) as u32)?;
            // Those of the blocks that are touched in part are DIRTY already.
            self.states.set(first, count, NOT_STORED, DIRTY);
        }
        self.touch(offset, end);
        Ok(())
    }

    /// Prepares a change of next below some blocks, and locks them. It writes back those that the
    /// range touches in part and that next does not have. Afterwards no block of the range is
    /// CLEAN. Returns which of the blocks that are touched in part were stored.
    pub(crate) fn prepare_next_change(&self, offset: u64, end: u64, size: u64) -> Result<[Option<u64>; 2], H::Error> {
        let touched = self.states.block_size.touched(offset, end, size);
        self.states.lock(offset, end, Mode::Exclusive)?;
        let mut stored = [None, None];
        for (n, block) in touched.partial().enumerate() {
            if self.states.is_in(block, UNWRITTEN) {
                self.write_blocks(block, 1, size)?;
            }
            if self.states.state(block) == CLEAN {
                stored[n] = Some(block);
            }
        }
        self.states.set(touched.first, touched.count, 1 << CLEAN, ABSENT);
        Ok(stored)
    }

    /// Writes a buffer to next. It holds a lock when it returns.
    fn write_through(&self, offset: u64, end: u64, buf: u32, fua: bool, in_scratch: InScratch) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        let stored = self.prepare_next_change(offset, end, size)?;
        let written = write_next(self.host, offset, end, buf, 0, fua && self.next.fua);
        if let Err(error) = written.and_then(|()| self.flush_for_fua(fua)) {
            self.free_unused(touched.first, touched.count, size);
            return Err(error);
        }
        if in_scratch == InScratch::Keep && self.keep_written(offset, end, buf, stored, size) {
            self.touch(offset, end);
            return Ok(());
        }
        // The cached data of these blocks is out of date.
        self.states.set(touched.first_whole, touched.whole_count, ANY, ABSENT);
        self.free_unused(touched.first, touched.count, size);
        Lru::forget(self.host, touched.first, touched.count);
        Ok(())
    }

    /// Stores data that was written through: whole blocks, and parts of blocks that are stored.
    /// False if scratch could not be written. The caller has locked the blocks.
    fn keep_written(&self, offset: u64, end: u64, buf: u32, stored: [Option<u64>; 2], size: u64) -> bool {
        let touched = self.states.block_size.touched(offset, end, size);
        let not_stored = touched.partial().filter(|block| !stored.contains(&Some(*block)));
        let (from, to) = self.without((offset, end), not_stored, size);
        if from >= to {
            return true;
        }
        let kept = self.host.scratch_pwrite(from, (to - from) as u32, buf, (from - offset) as u32).is_ok();
        if kept {
            let (first, count) = self.states.blocks(from, to);
            self.states.set(first, count, ANY, CLEAN);
        }
        kept
    }
}
