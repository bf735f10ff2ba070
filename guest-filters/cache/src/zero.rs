//! Zeroing and discarding.

use rbdkit_filter_blocks::{ABSENT, CHUNK, Host, HostError, Mode, TempBuffer, ZeroFlags, merge_block};

use crate::cache::{ANY, CLEAN, Cache, DIRTY, NOT_STORED, Policy, UNWRITTEN, ZEROED};
use crate::lru::Lru;

impl<H: Host> Cache<'_, H> {
    /// Makes a range read as zero.
    pub fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), H::Error> {
        let end = offset + length;
        if self.must_write_through(flags.fua) {
            return self.zero_through(offset, end, flags);
        }
        if flags.may_trim {
            let marked = self.mark_zero(offset, end, flags);
            if marked.is_err_and(|error| error.is_full()) {
                self.host.unlock();
                // Without multi-conn, a later flush on another connection would not cover this
                // request.
                let flags = ZeroFlags { fast: false, fua: !self.next.multi_conn, ..flags };
                return self.zero_through(offset, end, flags);
            }
            marked?;
            self.host.unlock();
            // The first and the last block may have been added.
            self.make_room(2);
            return Ok(());
        }
        if flags.fast {
            return Err(H::Error::NOT_SUPPORTED);
        }
        self.write_zeroes(offset, end)
    }

    /// Writes zeroes as data, which takes up space in scratch and in next.
    fn write_zeroes(&self, offset: u64, end: u64) -> Result<(), H::Error> {
        let mut from = offset;
        while from < end {
            let to = end.min(self.states.step_end(from, CHUNK));
            let zeroes = TempBuffer::new(self.host, (to - from) as u32)?;
            self.write_cached(from, to, zeroes.id())?;
            self.host.unlock();
            self.make_room(self.states.block_size.count(from, to));
            from = to;
        }
        Ok(())
    }

    /// Marks whole blocks as zero, and zeroes parts of the others. It holds a lock when it returns.
    fn mark_zero(&self, offset: u64, end: u64, flags: ZeroFlags) -> Result<(), H::Error> {
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
                ZEROED => {}
                ABSENT => {
                    merge_block(&self.states, block, size, (NOT_STORED, DIRTY), |temp| {
                        self.host.clear(temp, (lo - start) as u32, (hi - lo) as u32);
                    })?;
                    self.touch(start, stop);
                }
                _ => {
                    self.states.set(block, 1, 1 << CLEAN, DIRTY);
                    self.host.scratch_punch(lo, hi - lo)?;
                }
            }
        }
        self.mark_blocks_zero(touched.first_whole, touched.whole_count, ANY, size);
        Ok(())
    }

    /// Marks those of some blocks that are in one of `states` as zero, and frees their space. The
    /// caller has locked the blocks.
    fn mark_blocks_zero(&self, first: u64, count: u64, states: u8, size: u64) {
        let (mut block, last) = (first, first + count);
        while block < last {
            let (state, n) = self.states.run(block, last - block);
            if states >> state & 1 == 1 {
                self.states.set(block, n, states, ZEROED);
                if state == CLEAN || state == DIRTY {
                    let (start, stop) = self.states.block_size.span(block, n, size);
                    // The blocks are zero already. A failure only leaves space allocated.
                    let _ = self.host.scratch_punch(start, stop - start);
                    Lru::forget(self.host, block, n);
                }
            }
            block += n;
        }
    }

    /// Zeroes a range of next, and what the cache holds of it.
    fn zero_through(&self, offset: u64, end: u64, flags: ZeroFlags) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        let stored = self.prepare_next_change(offset, end, size)?;
        let zeroed = self.zero_next(offset, end, flags);
        if zeroed.is_ok() {
            for block in stored.into_iter().flatten() {
                let (start, stop) = self.states.block_size.span(block, 1, size);
                let (lo, hi) = (offset.max(start), end.min(stop));
                if self.host.scratch_punch(lo, hi - lo).is_ok() {
                    self.states.set(block, 1, 1 << ABSENT, CLEAN);
                }
            }
            self.states.set(touched.first_whole, touched.whole_count, ANY, ABSENT);
        }
        self.free_unused(touched.first, touched.count, size);
        zeroed
    }

    /// Discards a range. Afterwards it reads as before, or as zero.
    pub fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), H::Error> {
        let end = offset + length;
        if self.policy == Policy::Unsafe {
            return self.zero(offset, length, ZeroFlags { fua: false, may_trim: true, fast: false });
        }
        let size = self.host.size()?;
        let touched = self.states.block_size.touched(offset, end, size);
        self.states.lock(offset, end, Mode::Exclusive)?;
        // Parts of blocks that next does not have yet are left alone: next's older data must not
        // show.
        let unwritten = touched.partial().filter(|block| self.states.is_in(*block, UNWRITTEN));
        let (from, to) = self.without((offset, end), unwritten, size);
        if from < to {
            let (first, count) = self.states.blocks(from, to);
            self.states.set(first, count, 1 << CLEAN, ABSENT);
            let trimmed = self.host.next_trim(from, to - from, fua && self.next.fua);
            let trimmed = trimmed.and_then(|()| self.flush_for_fua(fua));
            self.free_unused(first, count, size);
            trimmed?;
            self.mark_blocks_zero(touched.first_whole, touched.whole_count, 1 << DIRTY, size);
        }
        Ok(())
    }
}
