//! A cache of blocks of a source, for tables.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use super::{Error, Source};

/// A block can be in one of this many places.
const WAYS: usize = 4;

/// Keeps blocks of a source in the guest's memory: for tables of which a decoder needs a few
/// numbers at a time. It holds a fixed number of bytes; a block takes the place of the one that was
/// used longest ago, among four.
///
/// It is a copy: [`clear`](BlockCache::clear) it when the tables may have changed.
pub struct BlockCache {
    source: Rc<dyn Source>,
    block: u64,
    lines: RefCell<Lines>,
}

struct Lines {
    /// In sets of [`WAYS`].
    lines: Vec<Line>,
    uses: u64,
}

#[derive(Clone, Default)]
struct Line {
    /// The block's number and 1; 0 for an empty line.
    tag: u64,
    used: u64,
    bytes: Box<[u8]>,
}

impl BlockCache {
    /// A cache of `bytes` bytes in blocks of `block` bytes.
    ///
    /// # Panics
    /// If `block` is not a power of two, or `bytes` is less than four blocks.
    pub fn new(source: Rc<dyn Source>, block: u32, bytes: u32) -> BlockCache {
        assert!(block.is_power_of_two() && bytes / block >= WAYS as u32, "a cache of {bytes} bytes, blocks of {block}");
        let sets = (bytes / block) as usize / WAYS;
        let lines = RefCell::new(Lines { lines: vec![Line::default(); sets * WAYS], uses: 0 });
        BlockCache { source, block: block.into(), lines }
    }

    /// The source that it reads.
    pub fn source(&self) -> &Rc<dyn Source> {
        &self.source
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lines.borrow_mut().lines.fill(Line::default());
    }

    /// Changes what is kept to `bytes` from `offset` on, which were written to the source.
    pub fn update(&self, offset: u64, bytes: &[u8]) {
        let mut lines = self.lines.borrow_mut();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let skip = (at % self.block) as usize;
            let n = (self.block as usize - skip).min(bytes.len() - done);
            if let Some(line) = lines.kept(at / self.block)
                && let Some(place) = lines.lines[line].bytes.get_mut(skip..skip + n)
            {
                place.copy_from_slice(&bytes[done..done + n]);
            }
            done += n;
        }
    }

    /// Forgets what is kept of the `length` bytes from `offset` on.
    pub fn forget(&self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let mut lines = self.lines.borrow_mut();
        for number in offset / self.block..offset.saturating_add(length).div_ceil(self.block) {
            if let Some(line) = lines.kept(number) {
                lines.lines[line] = Line::default();
            }
        }
    }

    /// The bytes from `offset` to the end of its block, or of the source.
    ///
    /// # Errors
    /// Those of the source. A line if `offset` is beyond its end.
    pub fn from(&self, offset: u64) -> Result<Ref<'_, [u8]>, Error> {
        let number = offset / self.block;
        let line = self.line(number)?;
        let skip = (offset % self.block) as usize;
        let lines = self.lines.borrow();
        if lines.lines[line].bytes.len() <= skip {
            super::source::check_range(&*self.source, offset, 1)?;
        }
        Ok(Ref::map(lines, |lines| &lines.lines[line].bytes[skip..]))
    }

    /// The place of a block, which is read if it is not there.
    fn line(&self, number: u64) -> Result<usize, Error> {
        let (line, is_there) = self.lines.borrow_mut().find(number);
        if !is_there {
            let start = number * self.block;
            let length = self.block.min(self.source.size().saturating_sub(start));
            let bytes = super::read(&*self.source, start, length as usize)?.into_boxed_slice();
            let place = &mut self.lines.borrow_mut().lines[line];
            (place.tag, place.bytes) = (number + 1, bytes);
        }
        Ok(line)
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Those of the source. A line if the range is not within it.
    pub fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        super::source::check_range(&*self.source, offset, into.len() as u64)?;
        while !into.is_empty() {
            let there = self.from(offset)?;
            let n = there.len().min(into.len());
            into[..n].copy_from_slice(&there[..n]);
            drop(there);
            offset += n as u64;
            into = &mut into[n..];
        }
        Ok(())
    }

    /// `N` bytes from `offset` on, for `from_be_bytes` and the like.
    ///
    /// # Errors
    /// Those of [`read`](BlockCache::read).
    pub fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        self.read(offset, &mut array)?;
        Ok(array)
    }
}

impl Lines {
    /// The first place of the set of a block. Neighbours go to neighbouring sets. Tables whose
    /// distance is a power of two are spread by the multiplication.
    fn first_of_set(&self, number: u64) -> usize {
        let spread = number ^ (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
        (spread % (self.lines.len() / WAYS) as u64) as usize * WAYS
    }

    /// The place of a block that is there.
    fn kept(&self, number: u64) -> Option<usize> {
        let first = self.first_of_set(number);
        (first..first + WAYS).find(|line| self.lines[*line].tag == number + 1)
    }

    /// The place of a block and whether it is there. Otherwise the place is empty.
    fn find(&mut self, number: u64) -> (usize, bool) {
        self.uses += 1;
        let first = self.first_of_set(number);
        let set = &mut self.lines[first..first + WAYS];
        if let Some(way) = set.iter().position(|line| line.tag == number + 1) {
            set[way].used = self.uses;
            return (first + way, true);
        }
        let way = (0..WAYS).min_by_key(|way| set[*way].used).unwrap_or(0);
        set[way] = Line { tag: 0, used: self.uses, bytes: Box::default() };
        (first + way, false)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Counts its reads.
    struct Counted(Vec<u8>, Cell<u32>);

    impl Source for Counted {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
            self.1.set(self.1.get() + 1);
            self.0.read(offset, into)
        }
    }

    #[test]
    fn a_block_is_read_once_and_ranges_may_cross_blocks() {
        let counted = Rc::new(Counted((0..=255).cycle().take(1000).collect(), Cell::new(0)));
        let cache = BlockCache::new(Rc::clone(&counted) as Rc<dyn Source>, 64, 1024);
        assert_eq!(cache.array::<4>(62), Ok([62, 63, 64, 65]));
        assert_eq!(cache.array::<4>(64), Ok([64, 65, 66, 67]));
        assert_eq!(counted.1.get(), 2);
        assert_eq!(cache.array::<2>(998), Ok([998u16 as u8, 999u16 as u8]), "the last block is short");
        assert!(cache.array::<2>(999).is_err());
        assert!(cache.from(1000).is_err());
        assert!(cache.from(u64::MAX).is_err());
        cache.clear();
        let before = counted.1.get();
        cache.array::<1>(64).unwrap();
        assert_eq!(counted.1.get(), before + 1);
    }

    #[test]
    fn only_what_is_forgotten_is_read_again() {
        let counted = Rc::new(Counted((0..=255).cycle().take(1000).collect(), Cell::new(0)));
        let cache = BlockCache::new(Rc::clone(&counted) as Rc<dyn Source>, 64, 1024);
        let read = |offset| cache.array::<1>(offset).map(|_| counted.1.get());
        assert_eq!((read(0), read(64), read(128)), (Ok(1), Ok(2), Ok(3)));
        cache.forget(127, 1);
        assert_eq!((read(0), read(128), read(64)), (Ok(3), Ok(3), Ok(4)));
        cache.forget(0, 65);
        assert_eq!((read(128), read(0), read(64)), (Ok(4), Ok(5), Ok(6)));
        cache.forget(100, 0);
        cache.forget(5000, 1);
        assert_eq!((read(0), read(64)), (Ok(6), Ok(6)));
    }

    #[test]
    fn what_was_written_changes_what_is_kept() {
        let cache = BlockCache::new(Rc::new(vec![0; 1000]), 64, 1024);
        cache.array::<1>(0).unwrap();
        cache.array::<1>(999).unwrap();
        // Of these blocks the first is kept, and the second is not.
        cache.update(62, &[1, 2, 3, 4]);
        cache.update(999, &[5]);
        assert_eq!((cache.array::<4>(60), cache.array::<1>(64)), (Ok([0, 0, 1, 2]), Ok([0])));
        assert_eq!(cache.array::<1>(999), Ok([5]));
        cache.clear();
        assert_eq!(cache.array::<2>(62), Ok([0, 0]), "it was not written to the source");
    }

    #[test]
    fn it_stays_right_when_it_is_full() {
        let bytes: Vec<u8> = (0..64 << 10).map(|n| (n * 7 + n / 251) as u8).collect();
        let cache = BlockCache::new(Rc::new(bytes.clone()), 64, 256);
        for n in 0..5000u64 {
            let offset = n * 7919 % ((64 << 10) - 8);
            assert_eq!(cache.array::<8>(offset).unwrap()[..], bytes[offset as usize..][..8]);
        }
    }
}
