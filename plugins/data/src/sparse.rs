//! Sparse storage: the image that the parameters describe, and pages that clients have written over
//! it.
//!
//! The description stays as it is, with a hole cut for what is trimmed or zeroed. A page takes
//! precedence over the description, and begins as a copy of that part of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::RwLock;

use rbdkit_plugin_api::{Buffer, Extents, Flags, Result, Span, is_all_zero, read_lock, write_lock};
use rbdkit_ram_disk::{Page, Pages, Storage, Zero};

use crate::image::{Image, PAGE};

/// The most runs that one extents request looks for: 32 GiB of pages, if each page is a run of its
/// own.
const MAX_RUNS: u32 = 1 << 20;

/// How many runs an extents request looks at beyond its range: 2 MiB of pages.
const RUNS_BEYOND: u32 = 64;

/// See the module.
pub(crate) struct Sparse(RwLock<Layers>);

impl Sparse {
    pub(crate) fn new(image: &Image, kind: Pages) -> Sparse {
        Sparse(RwLock::new(Layers { base: image.clone(), pages: BTreeMap::new(), kind }))
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
    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Result<()> {
        let layers = read_lock(&self.0);
        let length = u64::from(span.len);
        let mut at = span.at;
        for extent in layers.extents(offset, length, offset + length, Flags::NONE).as_slice() {
            let part = Span::new(at, extent.length as u32);
            if extent.zero {
                buffer.set_zero(part);
            } else {
                buffer.fill_with(part, |out| layers.read(extent.offset, out))?;
            }
            at += part.len;
        }
        let rest = Span::new(at, span.at + span.len - at);
        // Only if there were more extents than an answer holds.
        if rest.len > 0 {
            buffer.fill_with(rest, |out| layers.read(offset + u64::from(at - span.at), out))?;
        }
        Ok(())
    }

    fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_lock(&self.0).write(bytes, offset)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        write_lock(&self.0).zero(offset, length)
    }

    fn extents(&self, offset: u64, length: u64, limit: u64, flags: Flags) -> Extents {
        read_lock(&self.0).extents(offset, length, limit, flags)
    }
}

/// The description, and the pages that lie over it.
struct Layers {
    base: Image,
    /// The pages by number, each of [`PAGE`] bytes.
    pages: BTreeMap<u64, Page>,
    /// How pages are kept.
    kind: Pages,
}

impl Layers {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        self.base.read(offset, out);
        for (number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            let out = &mut out[(from - offset) as usize..(to - offset) as usize];
            self.kind.read(page, (from - start) as usize, out)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let from = (at % PAGE) as usize;
            let length = (bytes.len() - done).min(PAGE as usize - from);
            let piece = &bytes[done..done + length];
            if !(is_all_zero(piece) && self.is_hole(at, length as u64)) {
                self.write_in_page(at / PAGE, from, piece)?;
            }
            done += length;
        }
        Ok(())
    }

    /// Whether a range within one page has neither been written nor is described.
    fn is_hole(&self, at: u64, length: u64) -> bool {
        !self.pages.contains_key(&(at / PAGE)) && self.base.is_zero(at, length)
    }

    /// Writes `piece` at `from` of a page, which begins as a copy of the description.
    fn write_in_page(&mut self, number: u64, from: usize, piece: &[u8]) -> Result<()> {
        match self.pages.entry(number) {
            Entry::Occupied(mut page) => self.kind.write(page.get_mut(), from, piece),
            Entry::Vacant(place) => {
                place.insert(self.kind.create(|page| {
                    self.base.read(number * PAGE, page);
                    page[from..from + piece.len()].copy_from_slice(piece);
                })?);
                Ok(())
            }
        }
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        self.base.cut(offset, end);
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(number, _)| *number).collect();
        for number in touched {
            let start = number * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            let Some(page) = self.pages.get_mut(&number) else { continue };
            let part = (from - start) as usize..(to - start) as usize;
            if self.kind.change(page, |bytes| bytes[part].fill(0))? == Zero::All {
                self.pages.remove(&number);
                // The description below the page must not reappear.
                self.base.cut(start, start + PAGE);
            }
        }
        Ok(())
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
