//! Writing blocks back: bringing data to next that only the cache has.

use rbdkit_filter_blocks::{ABSENT, CHUNK, Host, HostError, Mode, TempBuffer, ZeroFlags, write_next};

use crate::cache::{CLEAN, Cache, DIRTY, Policy, UNWRITTEN, ZEROED};

/// How [`Cache::write_all`] treats an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnError {
    Stop,
    /// It writes the remaining blocks, and then returns the first error.
    Continue,
}

impl<H: Host> Cache<'_, H> {
    /// Makes every write durable that was answered before the call.
    pub fn flush(&self) -> Result<(), H::Error> {
        if self.policy == Policy::Unsafe {
            return Ok(());
        }
        if self.next.write {
            self.write_all(OnError::Stop)?;
        }
        self.flush_next()
    }

    /// Writes back as much as possible before a connection ends. Returns how many blocks are left
    /// that next does not have.
    pub fn finalize(&self) -> Result<u64, H::Error> {
        let unwritten = || self.states.count(DIRTY) + self.states.count(ZEROED);
        if self.policy == Policy::Unsafe || !self.next.write || unwritten() == 0 {
            return Ok(0);
        }
        let written = self.write_all(OnError::Continue);
        match written.and(self.flush_next()) {
            Ok(()) => Ok(0),
            Err(_) if unwritten() > 0 => Ok(unwritten()),
            failed => failed.map(|()| 0),
        }
    }

    /// Writes back all blocks that next does not have, in one pass from the first to the last.
    /// Blocks behind the current position that change during the pass stay as they are.
    fn write_all(&self, on_error: OnError) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let mut result = Ok(());
        let mut block = 0;
        while let Some(first) = self.states.find(block, UNWRITTEN) {
            // Zeroes cost next little, so a step may cover 1024 times as many blocks.
            let zeroed = self.states.state(first) == ZEROED;
            let limit = if zeroed { self.step_blocks() * 1024 } else { self.step_blocks() };
            let (_, count) = self.states.run(first, limit);
            let (start, stop) = self.states.block_size.span(first, count, size);
            self.states.lock(start, stop, Mode::Shared)?;
            let written = self.write_blocks(first, count, size);
            self.host.unlock();
            if written.is_err() && on_error == OnError::Stop {
                return written;
            }
            result = result.and(written);
            block = first + count;
        }
        result
    }

    /// Writes back those of some blocks that next does not have. The caller has locked the blocks;
    /// a shared lock is enough.
    pub(crate) fn write_blocks(&self, first: u64, count: u64, size: u64) -> Result<(), H::Error> {
        // Without multi-conn, a flush on one connection does not cover the writes of the others.
        // Each write must be durable then before the block becomes CLEAN.
        let each_durable = !self.next.multi_conn;
        let fua = each_durable && self.next.fua;
        let (mut block, last) = (first, first + count);
        while block < last {
            let (state, mut n) = self.states.run(block, last - block);
            if state == DIRTY {
                n = n.min(self.step_blocks());
                let (start, stop) = self.states.block_size.span(block, n, size);
                let length = (stop - start) as u32;
                let temp = TempBuffer::new(self.host, length)?;
                self.host.scratch_pread(start, length, temp.id(), 0)?;
                write_next(self.host, start, stop, temp.id(), 0, fua)?;
            } else if state == ZEROED {
                let (start, stop) = self.states.block_size.span(block, n, size);
                self.zero_next(start, stop, ZeroFlags { fua, may_trim: true, fast: false })?;
            }
            if UNWRITTEN >> state & 1 == 1 {
                if each_durable && !fua {
                    self.flush_next()?;
                }
                self.states.set(block, n, 1 << DIRTY, CLEAN);
                self.states.set(block, n, 1 << ZEROED, ABSENT);
            }
            block += n;
        }
        Ok(())
    }

    /// Makes a range of next zero.
    pub(crate) fn zero_next(&self, offset: u64, end: u64, flags: ZeroFlags) -> Result<(), H::Error> {
        let fua = flags.fua && self.next.fua;
        if self.next.zero {
            self.host.next_zero(offset, end - offset, ZeroFlags { fua, ..flags })?;
        } else if flags.fast {
            return Err(H::Error::NOT_SUPPORTED);
        } else {
            let zeroes = TempBuffer::new(self.host, (end - offset).min(CHUNK) as u32)?;
            let mut from = offset;
            while from < end {
                let to = end.min(from + CHUNK);
                write_next(self.host, from, to, zeroes.id(), 0, fua)?;
                from = to;
            }
        }
        self.flush_for_fua(flags.fua)
    }

    /// Flushes next after a request with FUA, if next does not support FUA.
    pub(crate) fn flush_for_fua(&self, fua: bool) -> Result<(), H::Error> {
        if fua && !self.next.fua { self.flush_next() } else { Ok(()) }
    }

    /// Flushes next, if it can.
    fn flush_next(&self) -> Result<(), H::Error> {
        if self.next.flush { self.host.next_flush() } else { Ok(()) }
    }
}
