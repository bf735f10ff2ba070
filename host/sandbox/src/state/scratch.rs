//! A temporary file without a name, for what a filter cannot keep in memory: overlays, caches.
//!
//! The file is made at the first write, in `$TMPDIR` or `/var/tmp` (temporary files that can be large do not belong in `/tmp`, which
//! may be memory). Beside it a [`Map`] says of every page of 4 KiB whether it holds data. That book answers three questions
//! without a system call: which parts of a read are zero, how much is allocated, and how much a write would add.
//!
//! **How exact.** [`Scratch::allocated`] counts pages that hold data, exactly, at all times (a write under way counts in advance). The file system may take
//! more for its own structures or where its blocks are larger. The quota is in the same measure: a write reserves what it adds before
//! it marks a page, and marks before it writes, so that the quota is only ever exceeded by a write that races with `punch` for the same pages, and
//! by no more than that write. Asking the file system (`fstat`) would be a system call a request, and its
//! answer includes what it allocates ahead.
//!
//! **A write that fails.** For want of quota nothing has changed. If the disk is full what the write was to fill anew is made to read as zero again
//! (its pages stay counted until they are punched, since another write to one of them may have counted on that); of bytes that were there
//! before some may be overwritten, as with any file.
//!
//! **Descriptors.** Each export that is written to has its file, and a client may invent names of exports. So all scratch files of the process
//! have at most half of the descriptors that it may have: sockets find one whatever clients write.
//!
//! **Waiting.** What is in the page cache is read at once (`RWF_NOWAIT`); small writes only copy into the page cache and are made at once too,
//! unless the kernel has lately made one wait (it throttles who writes faster than the disk): then the next ones go to threads that may wait.
//! Everything else goes to such threads always.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Fill, Op, Result, Span, run_blocking, run_blocking_with};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno as Raw, ReadWriteFlags};

use super::{Map, Quota};

/// The unit of the book and of the quota. Pages of this size are what file systems allocate.
const PAGE: u64 = 4096;
const HOLE: u8 = 0;
const DATA: u8 = 1;
/// Files end here, at the latest.
const MAX_OFFSET: u64 = i64::MAX as u64;
/// Up to this many bytes are copied out of the page cache on the thread that serves the request: 46 us for all of them where it was
/// measured (ext4, 2 busy cores), 8 us for 64 KiB.
const DIRECT_READ: u32 = 256 << 10;
/// The same for copying in: 19 us where pages have to be found first. At 256 KiB that took 800 us, as the disk was already waited for.
const DIRECT_WRITE: u32 = 64 << 10;
/// A direct write that took longer has waited for the disk.
const SLOW: Duration = Duration::from_millis(2);
/// So many writes then go to threads that may wait. It is a count and not a time because on a busy machine a write also takes that long when
/// its thread is just not scheduled, once in some hundreds: a second of caution for each was caution nearly always.
const CAREFUL: u32 = 64;

/// Descriptors for the scratch files of the process. Asked for once, before the process is confined.
static FILES: LazyLock<Arc<Quota>> = LazyLock::new(|| {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Arc::new(Quota::new(most.map_or(u64::MAX, |most| (most / 2).max(1))))
});

/// Where large temporary files are made: `$TMPDIR`, otherwise `/var/tmp`; absolute, because the server changes its directory.
pub fn directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = named.unwrap_or_else(|| PathBuf::from("/var/tmp"));
    std::path::absolute(&dir).unwrap_or(dir)
}

/// A scope's scratch file.
pub struct Scratch {
    dir: PathBuf,
    file: OnceLock<File>,
    /// Held while the file is made.
    making: Mutex<()>,
    /// [`HOLE`] or [`DATA`] for each page.
    pages: Map,
    /// Bytes of pages that hold data, and how many may.
    own: Quota,
    /// The same for all scratch files of the filter together.
    total: Arc<Quota>,
    /// How many writes may not be direct.
    careful: AtomicU32,
    /// Descriptors for all scratch files, and whether one of them is ours.
    files: Arc<Quota>,
    has_descriptor: AtomicBool,
}

/// Bytes of a buffer, and where they belong in the file.
#[derive(Clone, Copy)]
struct Part {
    span: Span,
    offset: u64,
}

impl Part {
    /// One past its last byte in the file. [`fits`] was asked.
    fn end(self) -> u64 {
        self.offset + u64::from(self.span.len)
    }

    /// The first `n` bytes of it, or all if it has no more.
    fn cut(self, n: u32) -> Part {
        Part { span: Span::new(self.span.at, self.span.len.min(n)), ..self }
    }

    /// What follows the first `n` bytes.
    fn after(self, n: u32) -> Part {
        Part { span: Span::new(self.span.at + n, self.span.len - n), offset: self.offset + u64::from(n) }
    }
}

impl Scratch {
    /// An empty one of at most `quota` bytes, which counts against `total` as well; its book is charged to `memory`.
    pub(super) fn new(dir: PathBuf, quota: u64, total: Arc<Quota>, memory: Arc<Quota>) -> Scratch {
        Scratch {
            dir,
            file: OnceLock::new(),
            making: Mutex::default(),
            pages: Map::new(memory),
            own: Quota::new(quota),
            total,
            careful: AtomicU32::new(0),
            files: Arc::clone(&FILES),
            has_descriptor: AtomicBool::new(false),
        }
    }

    /// Bytes that it takes: whole pages of 4 KiB.
    pub fn allocated(&self) -> u64 {
        self.own.used()
    }

    /// The most bytes it may take, those included that it has taken.
    pub fn quota(&self) -> u64 {
        let others = self.total.used().saturating_sub(self.own.used());
        self.own.limit().min(self.total.limit().saturating_sub(others))
    }

    /// Lets it take at least `bytes`. By how much that is more than before.
    pub fn grow_quota(&self, bytes: u64) -> u64 {
        self.own.raise_limit(bytes)
    }

    /// Changes the most bytes it may take; what is there stays.
    pub fn set_quota(&self, bytes: u64) {
        self.own.set_limit(bytes);
    }

    /// Reads into `span` of the buffer; what was never written is marked as zero, not read.
    ///
    /// # Errors
    /// EINVAL for a span outside of the buffer or a range beyond 2^63; what the disk says.
    pub fn pread(self: &Arc<Scratch>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) || !fits(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        let Some(file) = self.file.get() else {
            buffer.set_zero(span);
            return Op::Ready((buffer, Ok(())));
        };
        let mut todo = self.parts_with_data(&mut buffer, span, offset);
        let mut left = DIRECT_READ;
        while let Some(part) = todo.last().copied()
            && left > 0
        {
            match read_now(file, &mut buffer, part.cut(left)) {
                Ok(Some(n)) => {
                    left -= n;
                    todo.pop();
                    if n < part.span.len {
                        todo.push(part.after(n));
                    }
                }
                Ok(None) => break,
                Err(error) => return Op::Ready((buffer, Err(error))),
            }
        }
        if todo.is_empty() {
            return Op::Ready((buffer, Ok(())));
        }
        self.on_a_thread(buffer, move |scratch, buffer| {
            let file = scratch.file()?;
            todo.iter().try_for_each(|part| buffer.fill_with(part.span, |bytes| read_all(file, bytes, part.offset)))
        })
    }

    /// Marks as zero what no page holds, and answers the rest, the last part first.
    fn parts_with_data(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut rest = Part { span, offset };
        while rest.span.len > 0 {
            let (state, to) = self.run(rest.offset, rest.end());
            let part = rest.cut((to - rest.offset) as u32);
            match state {
                DATA => parts.push(part),
                _ => buffer.set_zero(part.span),
            }
            rest = rest.after(part.span.len);
        }
        parts.reverse();
        parts
    }

    /// What the pages from the one of byte `from` on hold, and up to which byte, at most `end`.
    fn run(&self, from: u64, end: u64) -> (u8, u64) {
        let page = from / PAGE;
        match self.pages.get_run(page, end.div_ceil(PAGE) - page) {
            Ok(run) if run.count > 0 => (run.state, end.min((page + run.count) * PAGE)),
            // The book was not begun: nothing was written.
            _ => (HOLE, end),
        }
    }

    /// Writes `span` of the buffer. Not durable.
    ///
    /// # Errors
    /// ENOSPC if the quota, the disk or the descriptors are used up; ENOMEM if the book cannot grow; EINVAL as for [`Scratch::pread`].
    pub fn pwrite(self: &Arc<Scratch>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) || !fits(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        if span.len == 0 {
            return Op::Ready((buffer, Ok(())));
        }
        if !self.may_have_a_file() {
            let context =
                format!("{} temporary files are open, and no more are allowed (ulimit -n)", self.files.limit());
            return Op::Ready((buffer, Err(Error::new(Errno::Enospc, context))));
        }
        let part = Part { span, offset };
        let new = match self.mark(part) {
            Ok(new) => new,
            Err(errno) => return Op::Ready((buffer, Err(errno.into()))),
        };
        buffer.materialize(span);
        if let Some(file) = self.file.get()
            && span.len <= DIRECT_WRITE
            && !self.is_careful()
        {
            let start = Instant::now();
            let result = write(file, buffer.data(span), offset, &new);
            if start.elapsed() > SLOW {
                self.careful.store(CAREFUL, Ordering::Relaxed);
            }
            return Op::Ready((buffer, result));
        }
        // If the file cannot be made the pages stay marked: they read as zero as before, and another write may already count on them.
        self.on_a_thread(buffer, move |scratch, buffer| write(scratch.file()?, buffer.data(span), offset, &new))
    }

    /// Enters that the pages of `part` are going to hold data. Answers the byte ranges of it that held none.
    fn mark(&self, part: Part) -> Result<Vec<(u64, u64)>, Errno> {
        self.pages.resize(PAGE as u32, MAX_OFFSET)?;
        let (from, end) = (part.offset, part.end());
        let (first, pages) = (from / PAGE, end.div_ceil(PAGE) - from / PAGE);
        let mut new = Vec::new();
        let mut free = 0;
        let mut at = from;
        while at < end {
            let (state, to) = self.run(at, end);
            if state == HOLE {
                new.push((at, to));
                free += to.div_ceil(PAGE) - at / PAGE;
            }
            at = to;
        }
        if new.is_empty() {
            return Ok(new);
        }
        self.reserve(free * PAGE)?;
        match self.pages.set(first, pages, 1 << HOLE, DATA) {
            Ok(set) if set <= free => self.give_back((free - set) * PAGE),
            // Somebody has freed pages in between, and given back as much.
            Ok(set) => self.overdraw((set - free) * PAGE),
            Err(_) => {
                self.give_back(free * PAGE);
                return Err(Errno::Enomem);
            }
        }
        Ok(new)
    }

    fn reserve(&self, bytes: u64) -> Result<(), Errno> {
        if !self.own.take(bytes) {
            return Err(Errno::Enospc);
        }
        if !self.total.take(bytes) {
            self.own.give(bytes);
            return Err(Errno::Enospc);
        }
        Ok(())
    }

    fn overdraw(&self, bytes: u64) {
        self.own.overdraw(bytes);
        self.total.overdraw(bytes);
    }

    fn give_back(&self, bytes: u64) {
        self.own.give(bytes);
        self.total.give(bytes);
    }

    /// Frees a range, which reads as zero then. Whole pages count as free at once.
    ///
    /// # Errors
    /// EINVAL for a range beyond 2^63; what the disk says: then the range is as it was, or partly zero.
    pub fn punch(self: &Arc<Scratch>, offset: u64, length: u64) -> Op<Result<()>> {
        if !fits(offset, length) {
            return Op::Ready(Err(Errno::Einval.into()));
        }
        let end = offset + length;
        if length == 0 || self.run(offset, end) == (HOLE, end) {
            return Op::Ready(Ok(()));
        }
        let scratch = Arc::clone(self);
        run_blocking(move || scratch.punch_all(offset, end))
    }

    fn punch_all(&self, mut from: u64, end: u64) -> Result<()> {
        while from < end {
            let (state, to) = self.run(from, end);
            if state == DATA {
                self.punch_run(from, to)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Frees bytes of pages that all hold data. The book comes first: a write that comes in between marks the page again and at worst counts
    /// a page that is empty; the other way round its data would be taken for a hole.
    fn punch_run(&self, from: u64, to: u64) -> Result<()> {
        let (first, end) = (from.div_ceil(PAGE), to / PAGE);
        let whole = end.saturating_sub(first);
        let freed = self.pages.set(first.min(end), whole, 1 << DATA, HOLE).map_err(|_| Error::from(Errno::Enomem))?;
        self.give_back(freed * PAGE);
        let result = erase(self.file()?, from, to);
        if result.is_err() {
            // What is not erased must not be taken for zeroes when a later write covers only a part of the page.
            let back = self.pages.set(first.min(end), whole, 1 << HOLE, DATA).unwrap_or(0);
            self.overdraw(back * PAGE);
        }
        result
    }

    /// Whether this write has to go to a thread. Two writes at once may count as one, which does no harm.
    fn is_careful(&self) -> bool {
        let left = self.careful.load(Ordering::Relaxed);
        if left > 0 {
            self.careful.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }

    /// Whether a descriptor is ours, or there was one left.
    fn may_have_a_file(&self) -> bool {
        if self.has_descriptor.load(Ordering::Relaxed) {
            return true;
        }
        let taken = self.files.take(1);
        if taken && self.has_descriptor.swap(true, Ordering::Relaxed) {
            // Another write was faster.
            self.files.give(1);
        }
        taken || self.has_descriptor.load(Ordering::Relaxed)
    }

    /// The file; makes it if it is not there yet, which waits for the disk.
    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = nameless(&self.dir).map_err(|raw| {
            let context = format!("cannot make a temporary file in {}: {raw}", self.dir.display());
            Error::new(Errno::from_raw(raw.raw_os_error()), context)
        })?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Runs what may wait.
    fn on_a_thread(
        self: &Arc<Scratch>,
        buffer: Buffer,
        work: impl FnOnce(&Scratch, &mut Buffer) -> Result<()> + Send + 'static,
    ) -> Op<Done> {
        let scratch = Arc::clone(self);
        run_blocking_with(buffer, move |buffer| work(&scratch, buffer))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.total.give(self.own.used());
        self.files.give(u64::from(*self.has_descriptor.get_mut()));
    }
}

/// Whether a range ends where files may end.
fn fits(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= MAX_OFFSET)
}

/// Opens a file that no directory names.
fn nameless(dir: &Path) -> Result<File, Raw> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        // How kernels and file systems say that they cannot.
        Err(Raw::NOTSUP | Raw::ISDIR | Raw::INVAL) => {}
        result => return result.map(File::from),
    }
    named_for_a_moment(dir)
}

fn named_for_a_moment(dir: &Path) -> Result<File, Raw> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::RUSR | Mode::WUSR;
    // A name that nobody else has, for a moment. `EXCL` makes sure that it is ours; what is left of a crash is stepped over.
    for n in 0..1000u32 {
        let path = dir.join(format!("rbdkit-{}-{n}.tmp", std::process::id()));
        match rustix::fs::open(&path, flags, mode) {
            Ok(file) => {
                rustix::fs::unlink(&path)?;
                return Ok(File::from(file));
            }
            Err(Raw::EXIST) => {}
            Err(raw) => return Err(raw),
        }
    }
    Err(Raw::EXIST)
}

/// Reads what is in memory already. How many bytes are done; none if the disk has to be waited for.
fn read_now(file: &File, buffer: &mut Buffer, part: Part) -> Result<Option<u32>> {
    let mut got = Ok(0);
    let full = buffer.fill_with(part.span, |bytes| {
        let wanted = bytes.len();
        got = rustix::io::preadv2(file, &mut [IoSliceMut::new(bytes)], part.offset, ReadWriteFlags::NOWAIT);
        if got == Ok(wanted) { Ok(()) } else { Err(()) }
    });
    match got {
        Ok(_) if full.is_ok() => Ok(Some(part.span.len)),
        Ok(0) => {
            // The file ends before the page does.
            buffer.set_zero(part.span);
            Ok(Some(part.span.len))
        }
        Ok(n) => {
            buffer.mark(Span::new(part.span.at, n as u32), Fill::Data);
            Ok(Some(n as u32))
        }
        Err(Raw::AGAIN | Raw::INTR | Raw::NOTSUP | Raw::NOSYS) => Ok(None),
        Err(raw) => Err(std::io::Error::from(raw).into()),
    }
}

/// Reads all of `bytes`; what is behind the end of the file is zero.
fn read_all(file: &File, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(Raw::INTR) => {}
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    Ok(())
}

/// Writes all of `bytes`; if that fails what was zero before, the ranges `new`, is made to read as zero again.
fn write(file: &File, bytes: &[u8], offset: u64, new: &[(u64, u64)]) -> Result<()> {
    let result = write_all(file, bytes, offset);
    if result.is_err() {
        for &(from, to) in new {
            let _ = erase(file, from, to);
        }
    }
    result
}

fn write_all(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::Eio.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Raw::INTR) => {}
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    Ok(())
}

/// Makes bytes read as zero and frees whole pages; where holes cannot be punched it writes zeroes.
fn erase(file: &File, from: u64, to: u64) -> Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from) {
            Ok(()) => return Ok(()),
            Err(Raw::INTR) => {}
            Err(Raw::NOTSUP | Raw::NOSYS) => break,
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZEROES.len() as u64);
        write_all(file, &ZEROES[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
