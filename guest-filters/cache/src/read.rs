//! Reading, prefetching and extents.

use rbdkit_filter_blocks::{ABSENT, CHUNK, Extent, Host, Mode, PAYLOAD, Wanted, copy_up};

use crate::cache::{CLEAN, Cache, UNWRITTEN, ZEROED};

/// How a read treats blocks that are not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentReads {
    /// It reads them from next.
    Read,
    /// It also keeps them in the cache.
    Keep,
}

impl<H: Host> Cache<'_, H> {
    /// Fills the payload.
    pub fn read(&self, offset: u64, length: u32, absent: AbsentReads) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        self.host.lock(offset, length.into(), Mode::Shared)?;
        let keep = absent == AbsentReads::Keep && self.states.any_in(offset, end, 1 << ABSENT);
        if keep {
            self.host.unlock();
            self.states.lock(offset, end, Mode::Exclusive)?;
        }
        let (mut kept, mut full) = (0, false);
        let mut from = offset;
        while from < end {
            let (state, to) = self.states.run_at(from, end);
            let (part, at) = ((to - from) as u32, (from - offset) as u32);
            match state {
                ABSENT if keep => {
                    let wanted = Wanted { offset: from, end: to, at };
                    let copied = copy_up(&self.states, self.states.blocks(from, to), CLEAN, Some(wanted))?;
                    if copied.kept > 0 {
                        self.touch(from, to);
                    }
                    (kept, full) = (kept + copied.kept, full | copied.full);
                }
                ABSENT => self.host.next_pread(from, part, PAYLOAD, at)?,
                ZEROED => self.host.clear(PAYLOAD, at, part),
                _ => {
                    match self.host.scratch_pread(from, part, PAYLOAD, at) {
                        // Next has the same data.
                        Err(_) if state == CLEAN => self.host.next_pread(from, part, PAYLOAD, at)?,
                        result => result?,
                    }
                    self.touch(from, to);
                }
            }
            from = to;
        }
        if kept > 0 || full {
            self.host.unlock();
            self.after_copying(kept, full);
        }
        Ok(())
    }

    /// Brings a range into the cache.
    pub fn prefetch(&self, offset: u64, length: u64) -> Result<(), H::Error> {
        let end = offset + length;
        let mut from = offset;
        loop {
            match self.states.find(self.states.block_size.block_at(from), 1 << ABSENT) {
                Some(block) => from = from.max(self.states.block_size.start(block)),
                None => return Ok(()),
            }
            if from >= end {
                return Ok(());
            }
            let to = self.states.run_at(from, end).1.min(self.states.step_end(from, CHUNK));
            self.states.lock(from, to, Mode::Exclusive)?;
            let (mut kept, mut full) = (0, false);
            let mut at = from;
            while at < to {
                let (state, stop) = self.states.run_at(at, to);
                if state == ABSENT {
                    let copied = copy_up(&self.states, self.states.blocks(at, stop), CLEAN, None)?;
                    if copied.kept > 0 {
                        self.touch(at, stop);
                    }
                    (kept, full) = (kept + copied.kept, full | copied.full);
                }
                at = stop;
            }
            self.host.unlock();
            self.after_copying(kept, full);
            from = to;
        }
    }

    /// If next has the data of all of a range, how far that is known to go on: at least to its end.
    /// Then next's extents are the answer.
    pub fn as_next_until(&self, offset: u64, length: u64) -> Option<u64> {
        let block_size = self.states.block_size;
        let until = match self.states.find(block_size.block_at(offset), UNWRITTEN) {
            Some(block) => block_size.start(block),
            None => u64::MAX,
        };
        (until >= offset + length).then_some(until)
    }

    /// The extents that a client would read: from `offset` on, without gaps, at least one, and only
    /// one if `one`.
    pub fn extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, H::Error> {
        self.states.extents(offset, offset + length, one, 1 << ABSENT | 1 << CLEAN, ZEROED)
    }
}
