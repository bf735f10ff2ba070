//! Sparse storage: the image that the parameters describe, and pages that clients have written over
//! it.
//!
//! The description stays as it is, with a hole cut for what is trimmed or zeroed. A page takes
//! precedence over the description, and begins as a copy of that part of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::RwLock;

use rbdkit_plugin_api::{Buffer, Errno, Error, Extents, Flags, Result, Span, is_all_zero, read_lock, write_lock};
use rbdkit_ram_disk::{Storage, fill};

use crate::image::{Image, PAGE};

/// The most runs that one extents request looks for: 32 GiB of pages, if each page is a run of its
/// own.
const MAX_RUNS: u32 = 1 << 20;

/// How many runs an extents request looks at beyond its range: 2 MiB of pages.
const RUNS_BEYOND: u32 = 64;

/// See the module.
pub(crate) struct Sparse(RwLock<Layers>);

impl Sparse {
    pub(crate) fn new(image: &Image) -> Sparse {
        Sparse(RwLock::new(Layers { base: image.clone(), pages: BTreeMap::new() }))
    }
}

impl Storage for Sparse {
    fn skips_holes(&self) -> bool {
        true
    }

    fn preferred_block(&self) -> u32 {
        PAGE as u32
    }

    /// Reads run by run, so that holes are known as such all the way to the reply.
    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) {
        let layers = read_lock(&self.0);
        let length = u64::from(span.len);
        let mut at = span.at;
        for extent in layers.extents(offset, length, offset + length, Flags::NONE).as_slice() {
            let part = Span::new(at, extent.length as u32);
            if extent.zero {
                buffer.set_zero(part);
            } else {
                fill(buffer, part, |out| layers.read(extent.offset, out));
            }
            at += part.len;
        }
        let rest = Span::new(at, span.at + span.len - at);
        // Only if there were more extents than an answer holds.
        if rest.len > 0 {
            fill(buffer, rest, |out| layers.read(offset + u64::from(at - span.at), out));
        }
    }

    fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_lock(&self.0).write(bytes, offset)
    }

    fn zero(&self, offset: u64, length: u64) {
        write_lock(&self.0).zero(offset, length);
    }

    fn extents(&self, offset: u64, length: u64, limit: u64, flags: Flags) -> Extents {
        read_lock(&self.0).extents(offset, length, limit, flags)
    }
}

/// The description, and the pages that lie over it.
struct Layers {
    base: Image,
    /// The pages by number, each of [`PAGE`] bytes.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Layers {
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
            let piece = &bytes[done..done + length];
            if !(is_all_zero(piece) && self.is_hole(at, length as u64)) {
                self.page(at / PAGE)?[from..from + length].copy_from_slice(piece);
            }
            done += length;
        }
        Ok(())
    }

    /// Whether a range within one page has neither been written nor is described.
    fn is_hole(&self, at: u64, length: u64) -> bool {
        !self.pages.contains_key(&(at / PAGE)) && self.base.is_zero(at, length)
    }

    /// The page to write into.
    fn page(&mut self, number: u64) -> Result<&mut [u8]> {
        match self.pages.entry(number) {
            Entry::Occupied(page) => Ok(page.into_mut()),
            Entry::Vacant(place) => {
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
            if is_all_zero(page) {
                self.pages.remove(&number);
                // The description below the page must not reappear.
                self.base.cut(start, start + PAGE);
            }
        }
    }

    /// In whole pages, except at the ends of the range.
    fn extents(&self, offset: u64, length: u64, limit: u64, flags: Flags) -> Extents {
        let end = offset + length;
        let mut extents = Extents::new(offset, length);
        let mut at = offset;
        let mut beyond = 0;
        // The answer may end early, so that a range of any length takes a limited time.
        for _ in 0..MAX_RUNS {
            if at >= end {
                beyond += 1;
            }
            if at >= limit || beyond > RUNS_BEYOND {
                break;
            }
            let (to, data) = self.run(at, limit);
            let another = extents.as_slice().last().is_some_and(|last| last.hole == data);
            if ((flags.req_one || at >= end) && another) || !extents.push(to - at, !data, !data) {
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
        // A page that contains data counts as data from its beginning.
        let whole = if to == next_page { to } else { to / PAGE * PAGE };
        if whole > at { (whole, false) } else { (page_end, true) }
    }
}
