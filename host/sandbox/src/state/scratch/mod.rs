//! A temporary file without a name, for what a filter cannot keep in memory: overlays and caches.
//!
//! The file is created at the first write, in `$TMPDIR` or `/var/tmp`. Large temporary files do not
//! belong in `/tmp`, which may be in memory. A [`Map`], the *page map*, records for every page of 4
//! KiB whether it holds data. It answers three questions without a system call: which parts of a
//! read are zero, how much is allocated, and how much a write would add.
//!
//! **Quota.** [`Scratch::allocated`] counts the pages that hold data. The count is always exact,
//! and a write is counted before it is made. The file system may take more, for its own structures
//! or because its blocks are larger. The quota has the same unit: a write reserves what it adds,
//! then marks the pages, then writes. So only a write that races with `punch` for the same pages
//! can exceed the quota, by no more than that write. Asking the file system (`fstat`) would cost a
//! system call for each request, and its answer includes space that it allocates ahead.
//!
//! **A write that fails.** If the quota has no room, nothing has changed. If the disk is full, the
//! ranges that the write was the first to fill are made to read as zero again. Their pages stay
//! counted until they are punched, since another write to one of them may rely on that. Some of the
//! bytes that were there before may be overwritten, as with any file.
//!
//! **Descriptors.** Each export that is written to has its file, and a client may invent names of
//! exports. So all scratch files together use at most half of the process's descriptors, and the
//! rest is left for sockets.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Op, Result, Span, lock, run_blocking, run_blocking_with};

use super::disk::{self, DirectWrites, FilePart};
use super::map::Map;
use rbdkit_plugin_api::Quota;

/// The unit of the page map and of the quota, in bytes: file systems allocate pages of this size.
pub(super) const PAGE: u64 = 4096;
/// The states of pages in the page map.
const HOLE: u8 = 0;
const DATA: u8 = 1;
/// The largest offset that a file can have.
const MAX_OFFSET: u64 = i64::MAX as u64;
/// The descriptors that the scratch files of the process may use. The limit is read once, before
/// the process is confined.
static DESCRIPTORS: LazyLock<Arc<Quota>> = LazyLock::new(|| {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Arc::new(Quota::new(limit.map_or(u64::MAX, |limit| (limit / 2).max(1))))
});

/// Where scratch files are made: `$TMPDIR`, otherwise `/var/tmp`. The path is absolute, because the
/// server changes its directory.
pub fn scratch_directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = named.unwrap_or_else(|| PathBuf::from("/var/tmp"));
    std::path::absolute(&dir).unwrap_or(dir)
}

/// Where the descriptor of a scratch file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DescriptorSource {
    /// From those that all scratch files share, if one is left.
    Shared,
    /// It is never refused: there is one such file for a filter and one for its default export.
    Reserved,
}

/// A scope's scratch file.
pub struct Scratch {
    dir: PathBuf,
    file: OnceLock<File>,
    /// Locked while the file is made.
    making: Mutex<()>,
    /// [`HOLE`] or [`DATA`] for each page.
    pages: Map,
    /// Bytes of pages that hold data.
    own: Quota,
    /// Bytes of pages that hold data in all scratch files of the filter.
    total: Arc<Quota>,
    direct_writes: DirectWrites,
    /// The descriptors that all scratch files may use.
    descriptors: Arc<Quota>,
    descriptor: DescriptorSource,
    /// Whether one of `descriptors` is taken for this file.
    has_descriptor: AtomicBool,
}

impl Scratch {
    /// An empty scratch file of at most `quota` bytes, which counts against `total` as well. Its
    /// page map is charged to `memory`.
    pub(super) fn new(
        dir: PathBuf,
        quota: u64,
        total: Arc<Quota>,
        memory: Arc<Quota>,
        descriptor: DescriptorSource,
    ) -> Scratch {
        Scratch {
            dir,
            file: OnceLock::new(),
            making: Mutex::default(),
            pages: Map::new(memory),
            own: Quota::new(quota),
            total,
            direct_writes: DirectWrites::default(),
            descriptors: Arc::clone(&DESCRIPTORS),
            descriptor,
            has_descriptor: AtomicBool::new(false),
        }
    }

    /// The bytes that it takes, in whole pages of 4 KiB.
    pub fn allocated(&self) -> u64 {
        self.own.used()
    }

    /// The most bytes that it may take, including those that it has taken.
    pub fn quota(&self) -> u64 {
        let others = self.total.used().saturating_sub(self.own.used());
        self.own.limit().min(self.total.limit().saturating_sub(others))
    }

    /// Lets it take at least `bytes`. Answers by how much its quota has grown.
    pub fn grow_quota(&self, bytes: u64) -> u64 {
        self.own.raise_limit(bytes)
    }

    /// Reads into `span` of the buffer. Pages that were never written are marked as zero and not
    /// read.
    ///
    /// # Errors
    /// EINVAL for a span outside of the buffer or a range beyond 2^63. Errors of the file system.
    pub fn pread(self: &Arc<Scratch>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) || !fits(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        let Some(file) = self.file.get() else {
            buffer.set_zero(span);
            return Op::Ready((buffer, Ok(())));
        };
        let mut todo = self.parts_with_data(&mut buffer, span, offset);
        if let Err(error) = disk::read_cached(file, &mut buffer, &mut todo) {
            return Op::Ready((buffer, Err(error)));
        }
        if todo.is_empty() {
            return Op::Ready((buffer, Ok(())));
        }
        self.on_a_thread(buffer, move |scratch, buffer| disk::read_parts(scratch.file()?, buffer, &todo))
    }

    /// Marks the parts of `span` that no page holds as zero. Answers the other parts, the last one
    /// first.
    fn parts_with_data(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Vec<FilePart> {
        let mut parts = Vec::new();
        let mut rest = FilePart { span, offset };
        while rest.span.len > 0 {
            let (state, to) = self.run(rest.offset, rest.end());
            let part = rest.first((to - rest.offset) as u32);
            match state {
                DATA => parts.push(part),
                _ => buffer.set_zero(part.span),
            }
            rest = rest.after(part.span.len);
        }
        parts.reverse();
        parts
    }

    /// The state of the page of byte `from`, and the byte, at most `end`, up to which pages have
    /// it.
    fn run(&self, from: u64, end: u64) -> (u8, u64) {
        let page = from / PAGE;
        match self.pages.get_run(page, end.div_ceil(PAGE) - page) {
            Ok(run) if run.count > 0 => (run.state, end.min((page + run.count) * PAGE)),
            // The page map has no size yet: nothing was written.
            _ => (HOLE, end),
        }
    }

    /// Writes `span` of the buffer. Not durable.
    ///
    /// # Errors
    /// ENOSPC if the quota, the disk or the descriptors are used up. ENOMEM if the page map cannot
    /// grow. EINVAL as for [`Scratch::pread`].
    pub fn pwrite(self: &Arc<Scratch>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) || !fits(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        if span.len == 0 {
            return Op::Ready((buffer, Ok(())));
        }
        if !self.take_descriptor() {
            let context =
                format!("{} temporary files are open, and no more are allowed (ulimit -n)", self.descriptors.limit());
            return Op::Ready((buffer, Err(Error::new(Errno::Enospc, context))));
        }
        let part = FilePart { span, offset };
        let new = match self.mark(part) {
            Ok(new) => new,
            Err(errno) => return Op::Ready((buffer, Err(errno.into()))),
        };
        buffer.materialize(span);
        let at_once = self.file.get().and_then(|file| {
            let write = || disk::write_or_erase(file, buffer.data(span), offset, &new);
            self.direct_writes.make(span.len, write)
        });
        if let Some(result) = at_once {
            return Op::Ready((buffer, result));
        }
        // If the file cannot be made, the pages stay marked: they still read as zero, and another
        // write may already rely on them.
        self.on_a_thread(buffer, move |scratch, buffer| {
            disk::write_or_erase(scratch.file()?, buffer.data(span), offset, &new)
        })
    }

    /// Marks the pages of `part` as holding data. Answers the byte ranges of it that held none.
    fn mark(&self, part: FilePart) -> Result<Vec<(u64, u64)>, Errno> {
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
            // Another call has freed pages in the meantime, and given back their bytes.
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

    /// Frees a range, which then reads as zero. Whole pages count as free at once.
    ///
    /// # Errors
    /// EINVAL for a range beyond 2^63. Errors of the file system: the range is then unchanged, or
    /// zero in parts.
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

    /// Frees the bytes `from..to`, whose pages all hold data. The page map changes first: a write
    /// that comes in between marks its page again, and at worst an empty page is counted. In the
    /// other order the data of that write would be treated as a hole.
    fn punch_run(&self, from: u64, to: u64) -> Result<()> {
        let (first, end) = (from.div_ceil(PAGE), to / PAGE);
        let whole = end.saturating_sub(first);
        let freed = self.pages.set(first.min(end), whole, 1 << DATA, HOLE).map_err(|_| Error::from(Errno::Enomem))?;
        self.give_back(freed * PAGE);
        let result = disk::erase(self.file()?, from, to);
        if result.is_err() {
            // The data is still there. It must not read as zero when a later write covers only a
            // part of the page.
            let back = self.pages.set(first.min(end), whole, 1 << HOLE, DATA).unwrap_or(0);
            self.overdraw(back * PAGE);
        }
        result
    }

    /// Takes a descriptor for this file unless it has one. Answers whether it has one now.
    fn take_descriptor(&self) -> bool {
        if self.has_descriptor.load(Ordering::Relaxed) {
            return true;
        }
        let taken = match self.descriptor {
            DescriptorSource::Shared => self.descriptors.take(1),
            DescriptorSource::Reserved => {
                self.descriptors.overdraw(1);
                true
            }
        };
        if taken && self.has_descriptor.swap(true, Ordering::Relaxed) {
            // Another write took one at the same time.
            self.descriptors.give(1);
        }
        taken || self.has_descriptor.load(Ordering::Relaxed)
    }

    /// The file. Makes it if there is none yet, which waits for the disk.
    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let _making = lock(&self.making);
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = disk::nameless(&self.dir).map_err(|raw| {
            let context = format!("cannot make a temporary file in {}: {raw}", self.dir.display());
            Error::new(Errno::from_raw(raw.raw_os_error()), context)
        })?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Runs `work` on a thread that may wait.
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
        self.descriptors.give(u64::from(*self.has_descriptor.get_mut()));
    }
}

/// Whether a range ends at or before the largest offset of a file.
fn fits(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= MAX_OFFSET)
}

#[cfg(test)]
mod tests;
