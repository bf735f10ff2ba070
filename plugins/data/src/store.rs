//! The disk: what the parameters describe, and what clients have written over it.
//!
//! Sparse storage keeps the description as it is, with a hole cut for what is trimmed or zeroed, and pages for what is written. A
//! page that is there counts, whatever the description says; it begins as a copy of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::RwLock;

use rbdkit_plugin_api::{Buffer, ConfigError, Errno, Error, Extents, Result, Span, read_lock, write_lock};

use crate::image::{Image, PAGE};

/// All offsets and lengths that it is given lie within the disk: the gate in front of the plugin sees to it.
pub(crate) enum Store {
    Sparse(RwLock<Sparse>),
    Flat(RwLock<Vec<u8>>),
}

impl Store {
    pub(crate) fn sparse(image: &Image) -> Store {
        Store::Sparse(RwLock::new(Sparse { base: image.clone(), pages: BTreeMap::new() }))
    }

    /// All in memory, and with `mlock` kept there.
    pub(crate) fn flat(image: &Image, size: u64, mlock: bool) -> Result<Store, ConfigError> {
        let mut bytes = Vec::new();
        usize::try_from(size).ok().and_then(|size| bytes.try_reserve_exact(size).ok()).ok_or_else(|| {
            let what = format!("data: allocator=malloc: no memory for {size} bytes; allocator=sparse would do");
            ConfigError::new(what)
        })?;
        bytes.resize(size as usize, 0);
        image.read(0, &mut bytes);
        if mlock && size > 0 {
            crate::mlock::lock(&bytes).map_err(|error| {
                ConfigError::new(format!(
                    "data: allocator=malloc,mlock=true: cannot lock {size} bytes into memory: {error}; \
                     a higher limit (ulimit -l) would allow it"
                ))
            })?;
        }
        Ok(Store::Flat(RwLock::new(bytes)))
    }

    pub(crate) fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) {
        match self {
            Store::Flat(bytes) => {
                let bytes = read_lock(bytes);
                let from = offset as usize;
                fill(buffer, span, |out| out.copy_from_slice(&bytes[from..from + span.len as usize]));
            }
            Store::Sparse(sparse) => {
                let sparse = read_lock(sparse);
                // Run by run, so that holes are known as such all the way to the reply.
                let mut at = span.at;
                for extent in sparse.extents(offset, u64::from(span.len), false).as_slice() {
                    let part = Span::new(at, extent.length as u32);
                    if extent.zero {
                        buffer.set_zero(part);
                    } else {
                        fill(buffer, part, |out| sparse.read(extent.offset, out));
                    }
                    at += part.len;
                }
                // Only if there were more extents than an answer holds.
                let rest = Span::new(at, span.at + span.len - at);
                fill(buffer, rest, |out| sparse.read(offset + u64::from(at - span.at), out));
            }
        }
    }

    pub(crate) fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            Store::Flat(disk) => {
                let mut disk = write_lock(disk);
                let from = offset as usize;
                disk[from..from + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            Store::Sparse(sparse) => write_lock(sparse).write(bytes, offset),
        }
    }

    pub(crate) fn zero(&self, offset: u64, length: u64) {
        match self {
            Store::Flat(disk) => {
                let mut disk = write_lock(disk);
                disk[offset as usize..(offset + length) as usize].fill(0);
            }
            Store::Sparse(sparse) => write_lock(sparse).zero(offset, length),
        }
    }

    pub(crate) fn extents(&self, offset: u64, length: u64, req_one: bool) -> Extents {
        match self {
            Store::Flat(_) => Extents::all_data(offset, length),
            Store::Sparse(sparse) => read_lock(sparse).extents(offset, length, req_one),
        }
    }
}

fn fill(buffer: &mut Buffer, span: Span, write: impl FnOnce(&mut [u8])) {
    if span.len == 0 {
        return;
    }
    let Ok(()) = buffer.fill_with(span, |bytes| {
        write(bytes);
        Ok::<_, Infallible>(())
    });
}

/// The most runs that one answer about extents looks at: 32 GiB of pages, if each page is a run of its own.
const MAX_RUNS: u32 = 1 << 20;

pub(crate) struct Sparse {
    base: Image,
    /// By their number, each of [`PAGE`] bytes.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Sparse {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        self.base.read(offset, out);
        for (number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let from = (at % PAGE) as usize;
            let length = (bytes.len() - done).min(PAGE as usize - from);
            self.page(at / PAGE)?[from..from + length].copy_from_slice(&bytes[done..done + length]);
            done += length;
        }
        Ok(())
    }

    /// A page to write into.
    fn page(&mut self, number: u64) -> Result<&mut [u8]> {
        match self.pages.entry(number) {
            std::collections::btree_map::Entry::Occupied(page) => Ok(page.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                let mut page = Vec::new();
                page.try_reserve_exact(PAGE as usize)
                    .map_err(|_| Error::new(Errno::Enomem, "data: no memory for what is written"))?;
                page.resize(PAGE as usize, 0);
                self.base.read(number * PAGE, &mut page);
                Ok(place.insert(page.into_boxed_slice()))
            }
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        self.base.cut(offset, end);
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(number, _)| *number).collect();
        for number in touched {
            let start = number * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            let Some(page) = self.pages.get_mut(&number) else { continue };
            page[(from - start) as usize..(to - start) as usize].fill(0);
            if page.iter().all(|byte| *byte == 0) {
                self.pages.remove(&number);
                // What it hid is not to come back.
                self.base.cut(start, start + PAGE);
            }
        }
    }

    /// In whole pages, but for the ends of the range.
    fn extents(&self, offset: u64, length: u64, req_one: bool) -> Extents {
        let end = offset + length;
        let mut extents = Extents::new(offset);
        let mut at = offset;
        // The answer may end early: a range of any length takes a bounded time.
        for _ in 0..MAX_RUNS {
            if at >= end {
                break;
            }
            let (to, data) = self.run(at, end);
            let another = extents.as_slice().last().is_some_and(|last| last.hole == data);
            if (req_one && another) || !extents.push(to - at, !data, !data) {
                break;
            }
            at = to;
        }
        extents
    }

    /// Where the run that begins at `at` ends, at most `end`, and whether it is data.
    fn run(&self, at: u64, end: u64) -> (u64, bool) {
        let page_end = (at / PAGE + 1).saturating_mul(PAGE).min(end);
        let next_page = match self.pages.range(at / PAGE..).next() {
            Some((number, _)) if *number == at / PAGE => return (page_end, true),
            Some((number, _)) => (number * PAGE).min(end),
            None => end,
        };
        let (length, data) = self.base.long_run(at, next_page - at);
        let to = at + length;
        if data {
            return (to.next_multiple_of(PAGE).min(next_page), true);
        }
        // A page with something in it is data from its beginning.
        let whole = if to == next_page { to } else { to / PAGE * PAGE };
        if whole > at { (whole, false) } else { (page_end, true) }
    }
}
