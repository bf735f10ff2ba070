//! The cache: which blocks of next are in scratch, and which of them next does not have yet.
//!
//! Why it is right with many requests at once, and when one of them fails half way:
//!
//! * Every request that looks at cached data holds a lock on its bytes: shared to read it or to write it back, exclusive to change it. **Who
//!   changes what a block is made of holds the whole block.** So reclaiming never frees what somebody reads, and a block that is written
//!   back cannot change before it is called clean.
//! * A block is called `CLEAN` only while scratch and next hold the same. It becomes `DIRTY` *before* its bytes change in scratch, and nothing in next
//!   is changed under a `CLEAN` block: it is dropped first. So wherever a request ends, what is read now is what would be read after reclaiming.
//! * A block that was not in the cache gets a state only when all of it is in scratch.
//! * What is `DIRTY` or `ZEROED` is let go only when next has it.

use rbdkit_filter_blocks::{
    CHUNK, Extent, Fault, Grid, Host, Mode, PAYLOAD, Temp, Want, Zeroing, copy_up, read_next, write_next,
};

use crate::lru::Lru;

/// The map of states.
pub const MAP: u32 = 0;

/// Only in next. The state of every block at first.
pub const NONE: u8 = 0;
/// In scratch, as in next.
pub const CLEAN: u8 = 1;
/// In scratch; next has something older.
pub const DIRTY: u8 = 2;
/// Zero, whatever scratch holds; next has something older. A hole will do.
pub const ZEROED: u8 = 3;

const ANY: u8 = 1 << NONE | 1 << CLEAN | 1 << DIRTY | 1 << ZEROED;
const UNWRITTEN: u8 = 1 << DIRTY | 1 << ZEROED;
/// Neither whole in scratch nor known to be equal to it: a part of such a block cannot be written alone.
const NOT_STORED: u8 = 1 << NONE | 1 << ZEROED;

/// The most blocks that are reclaimed under one lock.
const RECLAIM_RUN: u64 = 16;

/// When writes get to next.
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
pub struct Limit {
    /// Above this, blocks are reclaimed ...
    pub high: u64,
    /// ... until there are no more than this.
    pub low: u64,
}

/// What next can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub write: bool,
    pub flush: bool,
    pub fua: bool,
    pub trim: bool,
    pub zero: bool,
    pub multi_conn: bool,
}

/// The cache, as one request sees it.
pub struct Cache<'h, H: Host> {
    host: &'h H,
    grid: Grid,
    policy: Policy,
    limit: Option<Limit>,
    next: Next,
}

impl<'h, H: Host> Cache<'h, H> {
    /// A cache of blocks of 2^`bits` bytes.
    pub fn new(host: &'h H, bits: u32, policy: Policy, limit: Option<Limit>, next: Next) -> Self {
        Cache { host, grid: Grid::new(bits), policy, limit, next }
    }

    /// The state at `offset`, and where it ends, at most at `end`.
    fn run(&self, offset: u64, end: u64) -> (u8, u64) {
        let (state, count) = self.host.run(MAP, self.grid.of(offset), self.grid.count(offset, end));
        (state, end.min(self.grid.start(self.grid.of(offset) + count)))
    }

    fn state(&self, block: u64) -> u8 {
        self.host.run(MAP, block, 1).0
    }

    fn is(&self, block: u64, states: u8) -> bool {
        states >> self.state(block) & 1 == 1
    }

    /// Locks all of the blocks that the range touches.
    fn lock_blocks(&self, offset: u64, end: u64, mode: Mode) -> Result<(), H::Error> {
        let first = self.grid.start(self.grid.of(offset));
        let last = self.grid.start(self.grid.of(end - 1) + 1);
        self.host.lock(first, last - first, mode)
    }

    /// Notes that cached blocks were used.
    fn touch(&self, offset: u64, end: u64) {
        if let Some(limit) = self.limit {
            Lru::touch(self.host, self.grid, self.grid.of(offset), self.grid.count(offset, end), limit.low);
        }
    }

    // ---- Reading

    /// Fills the payload. With `keep`, what comes from next is kept.
    pub fn read(&self, offset: u64, length: u32, keep: bool) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        self.host.lock(offset, length.into(), Mode::Shared)?;
        let missing =
            || self.host.find(MAP, self.grid.of(offset), 1 << NONE).is_some_and(|b| b <= self.grid.of(end - 1));
        let keep = keep && missing();
        if keep {
            self.host.unlock();
            self.lock_blocks(offset, end, Mode::Exclusive)?;
        }
        let (mut kept, mut full) = (0, false);
        let mut from = offset;
        while from < end {
            let (state, to) = self.run(from, end);
            let (part, at) = ((to - from) as u32, (from - offset) as u32);
            match state {
                NONE if keep => {
                    let blocks = (self.grid.of(from), self.grid.count(from, to));
                    let want = Want { offset: from, end: to, at };
                    let copied = copy_up(self.host, self.grid, MAP, CLEAN, blocks, Some(want))?;
                    if copied.kept > 0 {
                        self.touch(from, to);
                    }
                    (kept, full) = (kept + copied.kept, full | copied.full);
                }
                NONE => self.host.next_pread(from, part, PAYLOAD, at)?,
                ZEROED => self.host.clear(PAYLOAD, at, part),
                _ => {
                    match self.host.scratch_pread(from, part, PAYLOAD, at) {
                        // Next has it as well.
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
            match self.host.find(MAP, self.grid.of(from), 1 << NONE) {
                Some(block) => from = from.max(self.grid.start(block)),
                None => return Ok(()),
            }
            if from >= end {
                return Ok(());
            }
            let to = self.run(from, end).1.min(self.grid.start(self.grid.of(from)) + self.grid.block().max(CHUNK));
            self.lock_blocks(from, to, Mode::Exclusive)?;
            let (mut kept, mut full) = (0, false);
            let mut at = from;
            while at < to {
                let (state, stop) = self.run(at, to);
                if state == NONE {
                    let blocks = (self.grid.of(at), self.grid.count(at, stop));
                    let copied = copy_up(self.host, self.grid, MAP, CLEAN, blocks, None)?;
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

    /// Blocks were added, or scratch was too full for them: the next ones shall find room.
    fn after_copying(&self, kept: u64, full: bool) {
        if full {
            self.reclaim(RECLAIM_RUN);
        } else {
            self.make_room(kept);
        }
    }

    /// Whether next's answer about a range is the answer.
    pub fn as_next(&self, offset: u64, length: u64) -> bool {
        let unwritten = self.host.find(MAP, self.grid.of(offset), UNWRITTEN);
        unwritten.is_none_or(|block| block > self.grid.of(offset + length - 1))
    }

    /// What a client would read: from `offset` on, without gaps, at least one extent; only one if `one`.
    pub fn extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, H::Error> {
        let end = offset + length;
        let mut list = Vec::new();
        let mut from = offset;
        while from < end && (list.is_empty() || !one) {
            let (state, to) = self.run(from, end);
            if state == NONE || state == CLEAN {
                list.extend(self.host.next_extents(from, to - from, one)?);
                match list.last() {
                    Some(last) if last.offset + last.length >= to => {}
                    // Next knows only a part: so do we.
                    _ => break,
                }
            } else {
                let zero = state == ZEROED;
                list.push(Extent { offset: from, length: to - from, hole: zero, zero });
            }
            from = to;
        }
        Ok(list)
    }

    // ---- Writing

    /// Writes the payload.
    pub fn write(&self, offset: u64, length: u32, fua: bool) -> Result<(), H::Error> {
        let end = offset + u64::from(length);
        if self.policy == Policy::Writethrough || fua && self.policy == Policy::Writeback {
            self.write_through(offset, end, PAYLOAD, fua, true)?;
        } else {
            self.write_back(offset, end, PAYLOAD)?;
        }
        self.host.unlock();
        self.make_room(self.grid.count(offset, end));
        Ok(())
    }

    /// Writes a buffer into scratch, or if that is full and nothing can be reclaimed, into next. Holds a lock in the end.
    fn write_back(&self, offset: u64, end: u64, buf: u32) -> Result<(), H::Error> {
        match self.store(offset, end, buf) {
            Err(error) if error.is_full() => {}
            result => return result,
        }
        self.host.unlock();
        if self.reclaim(self.grid.count(offset, end) + 1) > 0 {
            match self.store(offset, end, buf) {
                Err(error) if error.is_full() => self.host.unlock(),
                result => return result,
            }
        }
        // Without multi-conn a later flush on another connection would not cover it.
        self.write_through(offset, end, buf, !self.next.multi_conn, false)
    }

    /// Writes a buffer into scratch. Holds a lock in the end.
    fn store(&self, offset: u64, end: u64, buf: u32) -> Result<(), H::Error> {
        self.host.lock(offset, end - offset, Mode::Exclusive)?;
        let length = (end - offset) as u32;
        if self.run(offset, end) == (DIRTY, end) {
            self.host.scratch_pwrite(offset, length, buf, 0)?;
            self.touch(offset, end);
            return Ok(());
        }
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        if touched.partial().any(|block| self.is(block, NOT_STORED)) {
            self.host.unlock();
            self.lock_blocks(offset, end, Mode::Exclusive)?;
        }
        let (mut from, mut to) = (offset, end);
        for block in touched.partial().filter(|block| self.is(*block, NOT_STORED)) {
            let (start, stop) = self.grid.span(block, 1, size);
            let (lo, hi) = (offset.max(start), end.min(stop));
            self.merge(block, (start, stop), |temp| {
                self.host.copy(temp, (lo - start) as u32, buf, (lo - offset) as u32, (hi - lo) as u32);
            })?;
            if lo == from { from = hi } else { to = lo }
        }
        if from < to {
            let (first, count) = (self.grid.of(from), self.grid.count(from, to));
            self.host.set(MAP, first, count, 1 << CLEAN, DIRTY);
            self.host.scratch_pwrite(from, (to - from) as u32, buf, (from - offset) as u32)?;
            // Blocks that are touched in part are DIRTY already.
            self.host.set(MAP, first, count, NOT_STORED, DIRTY);
        }
        self.touch(offset, end);
        Ok(())
    }

    /// Makes a whole block out of what it is and `change`. The caller has locked it; it is NONE or ZEROED.
    fn merge(&self, block: u64, (start, stop): (u64, u64), change: impl FnOnce(u32)) -> Result<(), H::Error> {
        let temp = Temp::new(self.host, (stop - start) as u32)?;
        if self.state(block) == NONE {
            read_next(self.host, start, stop, temp.id(), 0)?;
        }
        change(temp.id());
        self.host.scratch_pwrite(start, (stop - start) as u32, temp.id(), 0)?;
        self.host.set(MAP, block, 1, NOT_STORED, DIRTY);
        Ok(())
    }

    /// Locks the blocks of a range to change next beneath them: what next does not have yet of blocks that are touched in part is written back,
    /// and nothing of the range is CLEAN afterwards. Answers which of the blocks that are touched in part were stored.
    fn expose(&self, offset: u64, end: u64, size: u64) -> Result<[Option<u64>; 2], H::Error> {
        let touched = self.grid.touched(offset, end, size);
        self.lock_blocks(offset, end, Mode::Exclusive)?;
        let mut stored = [None, None];
        for (n, block) in touched.partial().enumerate() {
            if self.is(block, UNWRITTEN) {
                self.write_blocks(block, 1, size)?;
            }
            if self.state(block) == CLEAN {
                stored[n] = Some(block);
            }
        }
        self.host.set(MAP, touched.first, touched.count, 1 << CLEAN, NONE);
        Ok(stored)
    }

    /// Writes a buffer into next, and if `keep` into scratch as well. Holds a lock in the end.
    fn write_through(&self, offset: u64, end: u64, buf: u32, fua: bool, keep: bool) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        let stored = self.expose(offset, end, size)?;
        let flag = fua && self.next.fua;
        let written = write_next(self.host, offset, end, buf, 0, flag);
        let written =
            written.and_then(|()| if fua && !flag && self.next.flush { self.host.next_flush() } else { Ok(()) });
        if let Err(error) = written {
            self.free_unused(touched.first, touched.count, size);
            return Err(error);
        }
        if keep && self.rewrite(offset, end, buf, stored, size) {
            self.touch(offset, end);
            return Ok(());
        }
        // What was here is out of date.
        self.host.set(MAP, touched.whole, touched.wholes, ANY, NONE);
        self.free_unused(touched.first, touched.count, size);
        Lru::forget(self.host, touched.first, touched.count);
        Ok(())
    }

    /// Puts what was written through into scratch: whole blocks, and parts of blocks that are stored. The caller has them locked.
    fn rewrite(&self, offset: u64, end: u64, buf: u32, stored: [Option<u64>; 2], size: u64) -> bool {
        let touched = self.grid.touched(offset, end, size);
        let (mut from, mut to) = (offset, end);
        for block in touched.partial().filter(|block| !stored.contains(&Some(*block))) {
            let (start, stop) = self.grid.span(block, 1, size);
            if offset >= start { from = stop.min(end) } else { to = start }
        }
        if from >= to {
            return true;
        }
        let kept = self.host.scratch_pwrite(from, (to - from) as u32, buf, (from - offset) as u32).is_ok();
        if kept {
            self.host.set(MAP, self.grid.of(from), self.grid.count(from, to), ANY, CLEAN);
        }
        kept
    }

    /// Frees the space of those of some blocks that are not cached. The caller has them locked.
    fn free_unused(&self, first: u64, count: u64, size: u64) {
        let (start, stop) = self.grid.span(first, count, size);
        let mut from = start;
        while from < stop {
            let (state, to) = self.run(from, stop);
            if state == NONE {
                // It is only space.
                let _ = self.host.scratch_punch(from, to - from);
            }
            from = to;
        }
    }

    // ---- Zeroing and discarding

    /// Makes a range zero.
    pub fn zero(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), H::Error> {
        let end = offset + length;
        if self.policy == Policy::Writethrough || how.fua && self.policy == Policy::Writeback {
            return self.zero_through(offset, end, how);
        }
        if how.may_trim {
            let marked = self.mark_zero(offset, end, how.fast);
            if marked.is_err_and(|error| error.is_full()) {
                self.host.unlock();
                // Without multi-conn a later flush on another connection would not cover it.
                return self.zero_through(offset, end, Zeroing { fast: false, fua: !self.next.multi_conn, ..how });
            }
            marked?;
            self.host.unlock();
            // The first and the last block may have become data.
            self.make_room(2);
            return Ok(());
        }
        if how.fast {
            return Err(H::Error::NOT_SUPPORTED);
        }
        self.write_zeroes(offset, end)
    }

    /// Writes zeroes as data, which takes up space here and in next.
    fn write_zeroes(&self, offset: u64, end: u64) -> Result<(), H::Error> {
        let step = CHUNK.max(self.grid.block());
        let mut from = offset;
        while from < end {
            // Up to where the next step begins with a whole block.
            let to = end.min(self.grid.start(self.grid.of(from)) + step);
            let zeroes = Temp::new(self.host, (to - from) as u32)?;
            self.write_back(from, to, zeroes.id())?;
            self.host.unlock();
            self.make_room(self.grid.count(from, to));
            from = to;
        }
        Ok(())
    }

    /// Marks whole blocks as zero, and writes zeroes into the others. Holds a lock in the end.
    fn mark_zero(&self, offset: u64, end: u64, fast: bool) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        self.lock_blocks(offset, end, Mode::Exclusive)?;
        if fast && touched.partial().any(|block| self.state(block) == NONE) {
            return Err(H::Error::NOT_SUPPORTED);
        }
        for block in touched.partial() {
            let (start, stop) = self.grid.span(block, 1, size);
            let (lo, hi) = (offset.max(start), end.min(stop));
            match self.state(block) {
                ZEROED => {}
                NONE => {
                    self.merge(block, (start, stop), |temp| {
                        self.host.clear(temp, (lo - start) as u32, (hi - lo) as u32);
                    })?;
                    self.touch(start, stop);
                }
                _ => {
                    self.host.set(MAP, block, 1, 1 << CLEAN, DIRTY);
                    self.host.scratch_punch(lo, hi - lo)?;
                }
            }
        }
        self.mark_blocks_zero(touched.whole, touched.wholes, ANY, size);
        Ok(())
    }

    /// Marks those of some blocks that are in one of `states` as zero, and frees their space. The caller has them locked.
    fn mark_blocks_zero(&self, first: u64, count: u64, states: u8, size: u64) {
        let (mut block, last) = (first, first + count);
        while block < last {
            let (state, n) = self.host.run(MAP, block, last - block);
            if states >> state & 1 == 1 {
                self.host.set(MAP, block, n, states, ZEROED);
            }
            if states >> state & 1 == 1 && (state == CLEAN || state == DIRTY) {
                let (start, stop) = self.grid.span(block, n, size);
                // It is zero already; this is only space.
                let _ = self.host.scratch_punch(start, stop - start);
                Lru::forget(self.host, block, n);
            }
            block += n;
        }
    }

    fn zero_through(&self, offset: u64, end: u64, how: Zeroing) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        let stored = self.expose(offset, end, size)?;
        let zeroed = self.zero_next(offset, end, how);
        if zeroed.is_ok() {
            for block in stored.into_iter().flatten() {
                let (start, stop) = self.grid.span(block, 1, size);
                let (lo, hi) = (offset.max(start), end.min(stop));
                if self.host.scratch_punch(lo, hi - lo).is_ok() {
                    self.host.set(MAP, block, 1, 1 << NONE, CLEAN);
                }
            }
            self.host.set(MAP, touched.whole, touched.wholes, ANY, NONE);
        }
        self.free_unused(touched.first, touched.count, size);
        zeroed
    }

    /// Makes a range of next zero.
    fn zero_next(&self, offset: u64, end: u64, how: Zeroing) -> Result<(), H::Error> {
        let flag = how.fua && self.next.fua;
        if self.next.zero {
            self.host.next_zero(offset, end - offset, Zeroing { fua: flag, ..how })?;
        } else if how.fast {
            return Err(H::Error::NOT_SUPPORTED);
        } else {
            let zeroes = Temp::new(self.host, (end - offset).min(CHUNK) as u32)?;
            let mut from = offset;
            while from < end {
                let to = end.min(from + CHUNK);
                write_next(self.host, from, to, zeroes.id(), 0, flag)?;
                from = to;
            }
        }
        if how.fua && !flag && self.next.flush { self.host.next_flush() } else { Ok(()) }
    }

    /// Discards a range. What it reads as afterwards is what it was, or zero.
    pub fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), H::Error> {
        let end = offset + length;
        if self.policy == Policy::Unsafe {
            return self.zero(offset, length, Zeroing { fua: false, may_trim: true, fast: false });
        }
        let size = self.host.size()?;
        let touched = self.grid.touched(offset, end, size);
        self.lock_blocks(offset, end, Mode::Exclusive)?;
        // Of blocks that next does not have yet it keeps its part: what is older must not come to light.
        let (mut from, mut to) = (offset, end);
        for block in touched.partial().filter(|block| self.is(*block, UNWRITTEN)) {
            let (start, stop) = self.grid.span(block, 1, size);
            if offset >= start { from = stop.min(end) } else { to = start }
        }
        if from < to {
            let (first, count) = (self.grid.of(from), self.grid.count(from, to));
            self.host.set(MAP, first, count, 1 << CLEAN, NONE);
            let flag = fua && self.next.fua;
            let trimmed = self.host.next_trim(from, to - from, flag);
            let trimmed =
                trimmed.and_then(|()| if fua && !flag && self.next.flush { self.host.next_flush() } else { Ok(()) });
            self.free_unused(first, count, size);
            trimmed?;
            self.mark_blocks_zero(touched.whole, touched.wholes, 1 << DIRTY, size);
        }
        Ok(())
    }

    // ---- Writing back

    /// Makes everything that was answered before durable.
    pub fn flush(&self) -> Result<(), H::Error> {
        if self.policy == Policy::Unsafe {
            return Ok(());
        }
        if self.next.write {
            self.write_all(false)?;
        }
        if self.next.flush { self.host.next_flush() } else { Ok(()) }
    }

    /// Writes back what it can before a connection ends. Answers how many blocks are left that next does not have.
    pub fn finalize(&self) -> Result<u64, H::Error> {
        let unwritten = || self.host.count(MAP, DIRTY) + self.host.count(MAP, ZEROED);
        if self.policy == Policy::Unsafe || !self.next.write || unwritten() == 0 {
            return Ok(0);
        }
        let written = self.write_all(true);
        let flushed = if self.next.flush { self.host.next_flush() } else { Ok(()) };
        match written.and(flushed) {
            Ok(()) => Ok(0),
            Err(_) if unwritten() > 0 => Ok(unwritten()),
            failed => failed.map(|()| 0),
        }
    }

    /// Writes all blocks to next that it does not have, once from the first to the last: what is written meanwhile behind that stays as it is.
    /// With `go_on`, also after an error; it answers the first.
    fn write_all(&self, go_on: bool) -> Result<(), H::Error> {
        let size = self.host.size()?;
        let step = (CHUNK / self.grid.block()).max(1);
        let mut answer = Ok(());
        let mut block = 0;
        while let Some(first) = self.host.find(MAP, block, UNWRITTEN) {
            let (state, _) = self.host.run(MAP, first, 1);
            // Zeroes cost next little, however many.
            let most = if state == ZEROED { step * 1024 } else { step };
            let (_, count) = self.host.run(MAP, first, most);
            let (start, stop) = self.grid.span(first, count, size);
            self.lock_blocks(start, stop, Mode::Shared)?;
            let written = self.write_blocks(first, count, size);
            self.host.unlock();
            if written.is_err() && !go_on {
                return written;
            }
            answer = answer.and(written);
            block = first + count;
        }
        answer
    }

    /// Writes those of some blocks to next that it does not have. The caller has locked them, shared is enough.
    fn write_blocks(&self, first: u64, count: u64, size: u64) -> Result<(), H::Error> {
        // Without it, a flush on one connection says nothing about what others wrote.
        let each_durable = !self.next.multi_conn;
        let fua = each_durable && self.next.fua;
        let step = (CHUNK / self.grid.block()).max(1);
        let (mut block, last) = (first, first + count);
        while block < last {
            let (state, mut n) = self.host.run(MAP, block, last - block);
            if state == DIRTY {
                n = n.min(step);
                let (start, stop) = self.grid.span(block, n, size);
                let temp = Temp::new(self.host, (stop - start) as u32)?;
                self.host.scratch_pread(start, (stop - start) as u32, temp.id(), 0)?;
                write_next(self.host, start, stop, temp.id(), 0, fua)?;
            } else if state == ZEROED {
                let (start, stop) = self.grid.span(block, n, size);
                self.zero_next(start, stop, Zeroing { fua, may_trim: true, fast: false })?;
            }
            if UNWRITTEN >> state & 1 == 1 {
                if each_durable && !fua && self.next.flush {
                    self.host.next_flush()?;
                }
                self.host.set(MAP, block, n, 1 << DIRTY, CLEAN);
                self.host.set(MAP, block, n, 1 << ZEROED, NONE);
            }
            block += n;
        }
        Ok(())
    }

    // ---- Reclaiming

    fn used(&self) -> u64 {
        self.host.count(MAP, CLEAN) + self.host.count(MAP, DIRTY)
    }

    /// Blocks were added: reclaims some if there are too many. Holds no lock, neither before nor after.
    fn make_room(&self, added: u64) {
        let Some(limit) = self.limit else { return };
        let used = self.used();
        let lru = Lru::get(self.host);
        let reclaiming = used > limit.high || lru.reclaiming && used > limit.low;
        lru.set_reclaiming(self.host, reclaiming);
        if reclaiming {
            // More than were added, so that it comes to an end; not all at once, so that no request has to wait for all.
            self.reclaim((2 * added + 2).min(used - limit.low));
        }
    }

    /// Frees about `wanted` blocks, those first that were used least recently. Answers how many it freed. Holds no lock, neither before nor after.
    fn reclaim(&self, wanted: u64) -> u64 {
        let Ok(size) = self.host.size() else { return 0 };
        let mut freed = 0;
        // Some of what is found is in use, cannot be written back, or is gone already: do not search for ever.
        for _ in 0..wanted.min(4096) + 4 {
            if freed >= wanted {
                break;
            }
            let lru = Lru::get(self.host);
            let most = (wanted - freed).min(RECLAIM_RUN);
            let labelled = if self.limit.is_some() { lru.oldest(self.host, most) } else { None };
            let Some((first, count)) = labelled.or_else(|| self.any_stored(lru.hand(), most)) else { break };
            lru.move_hand(self.host, first + count);
            freed += self.evict(first, count, size);
        }
        freed
    }

    /// Some stored blocks, clean ones if there are any, from `hand` on.
    fn any_stored(&self, hand: u64, most: u64) -> Option<(u64, u64)> {
        let find = |states| self.host.find(MAP, hand, states).or_else(|| self.host.find(MAP, 0, states));
        let block = find(1 << CLEAN).or_else(|| if self.next.write { find(1 << DIRTY) } else { None })?;
        Some((block, self.host.run(MAP, block, most).1))
    }

    /// Writes some blocks back and frees their space. Answers how many it freed.
    fn evict(&self, first: u64, count: u64, size: u64) -> u64 {
        let (start, stop) = self.grid.span(first, count, size);
        if self.lock_blocks(start, stop, Mode::Exclusive).is_err() {
            return 0;
        }
        if self.next.write {
            // What could not be written back stays DIRTY, and is not freed.
            let _ = self.write_blocks(first, count, size);
        }
        // First the state, then the space: the other way round a CLEAN block would be empty for a moment, or for ever.
        let freed = self.host.set(MAP, first, count, 1 << CLEAN, NONE);
        self.free_unused(first, count, size);
        Lru::forget(self.host, first, count);
        self.host.unlock();
        freed
    }
}
