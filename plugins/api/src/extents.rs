//! Extents: which runs of an export are holes or read as zero.

use crate::error::{Errno, Error, Result};

/// A run of bytes of one kind. A *hole* is not allocated, and a *zero* reads as zero; most holes
/// are both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the beginning of the export.
    pub offset: u64,
    /// Bytes, never 0.
    pub length: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zero.
    pub zero: bool,
}

impl Extent {
    /// One past its last byte. Only for extents that have passed [`Extents::push`] or
    /// [`Extents::check`].
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The answer to an extents request: ascending and contiguous extents that begin at the requested
/// offset. A complete answer is not empty. Neighbours of one kind are merged.
///
/// It holds at most [`Extents::limit`] extents. A longer answer is cut, which the protocol allows:
/// the client asks again from the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    from: u64,
    list: Vec<Extent>,
    /// The most extents.
    limit: usize,
}

/// The most extents in any answer: 2 MiB here and 512 KiB on the wire.
const MAX_EXTENTS: usize = 1 << 16;

/// An answer may always have this number of extents, however short its range is. They take a page
/// of 4 KiB.
const MIN_EXTENTS: usize = 128;

/// Extents are rarely shorter than a sector of this many bytes.
const SECTOR: u64 = 512;

impl Extents {
    /// The most extents in an answer about `length` bytes: one for each sector, at least 128 and at
    /// most 65536. The server reserves memory for this number before it asks the layers.
    pub const fn limit(length: u64) -> usize {
        let sectors = length / SECTOR;
        if sectors >= MAX_EXTENTS as u64 {
            MAX_EXTENTS
        } else if sectors <= MIN_EXTENTS as u64 {
            MIN_EXTENTS
        } else {
            sectors as usize
        }
    }

    /// An empty list whose first extent begins at `from`, the answer to a request for `length`
    /// bytes.
    pub fn new(from: u64, length: u64) -> Extents {
        Extents { from, list: Vec::new(), limit: Extents::limit(length) }
    }

    /// One extent of data, for a layer that knows nothing about holes.
    pub fn all_data(offset: u64, length: u64) -> Extents {
        let list = vec![Extent { offset, length, hole: false, zero: false }];
        Extents { from: offset, list, limit: Extents::limit(length) }
    }

    /// Where the next extent begins.
    pub fn next_offset(&self) -> u64 {
        self.list.last().map_or(self.from, Extent::end)
    }

    /// Adds `length` bytes at the end, and merges them with the last extent if they are of its
    /// kind. Returns false, and adds nothing, if there would be more than [`Extents::limit`].
    pub fn push(&mut self, length: u64, hole: bool, zero: bool) -> bool {
        if length == 0 {
            return true;
        }
        let offset = self.next_offset();
        let full = self.list.len() >= self.limit;
        match self.list.last_mut() {
            Some(last) if last.hole == hole && last.zero == zero => last.length += length,
            _ if full => return false,
            _ => self.list.push(Extent { offset, length, hole, zero }),
        }
        true
    }

    /// The extents.
    pub fn as_slice(&self) -> &[Extent] {
        &self.list
    }

    /// Cuts what lies beyond `end`.
    pub fn cut(&mut self, end: u64) {
        while self.list.last().is_some_and(|last| last.offset >= end) {
            self.list.pop();
        }
        if let Some(last) = self.list.last_mut() {
            last.length = last.length.min(end - last.offset);
        }
    }

    /// Checks a list from another layer. Extents that begin beyond `offset..offset + length` are
    /// left out. The last extent may run on beyond this range up to `limit`, where it is cut. With
    /// `req_one` it is cut to the range.
    ///
    /// # Errors
    /// EIO with what was wrong: the list is empty, does not begin at `offset`, has gaps or
    /// overlaps, or one of its extents is empty or overflows.
    pub fn check(
        list: impl IntoIterator<Item = Extent>,
        offset: u64,
        length: u64,
        limit: u64,
        req_one: bool,
    ) -> Result<Extents> {
        let wrong =
            |what: String| Error::new(Errno::Eio, format!("bad extents for offset {offset} length {length}: {what}"));
        let range_end = offset.checked_add(length).ok_or_else(|| wrong("the range overflows".into()))?;
        let limit = if req_one { range_end } else { limit.max(range_end) };
        let mut checked = Extents::new(offset, length);
        let mut expected = offset;
        for extent in list {
            if extent.offset != expected {
                return Err(wrong(format!("one begins at {} instead of {expected}", extent.offset)));
            }
            if extent.length == 0 {
                return Err(wrong(format!("an empty one at {expected}")));
            }
            let end = extent
                .offset
                .checked_add(extent.length)
                .ok_or_else(|| wrong(format!("the one at {expected} overflows")))?;
            let kept = end.min(limit) - expected;
            if !checked.push(kept, extent.hole, extent.zero) || end >= range_end || (req_one && checked.list.len() > 1)
            {
                break;
            }
            expected = end;
        }
        if checked.list.is_empty() {
            return Err(wrong("there are none".into()));
        }
        if req_one {
            checked.list.truncate(1);
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, hole: bool) -> Extent {
        Extent { offset, length, hole, zero: hole }
    }

    #[test]
    fn neighbours_of_one_kind_are_merged() {
        let mut extents = Extents::new(10, 100);
        extents.push(5, false, false);
        extents.push(0, true, true);
        extents.push(5, false, false);
        extents.push(5, true, true);
        assert_eq!(extents.as_slice(), [extent(10, 10, false), extent(20, 5, true)]);
    }

    #[test]
    fn lies_are_refused() {
        let check = |list: &[Extent]| Extents::check(list.iter().copied(), 10, 20, 30, false);
        assert!(check(&[]).is_err());
        assert!(check(&[extent(9, 10, false)]).is_err());
        assert!(check(&[extent(10, 0, false)]).is_err());
        assert!(check(&[extent(10, 5, false), extent(14, 5, false)]).is_err());
        assert!(check(&[extent(10, 5, false), extent(16, 5, false)]).is_err());
        assert!(check(&[extent(10, u64::MAX, false)]).is_err());
    }

    #[test]
    fn what_goes_past_the_request_is_cut() {
        let list = [extent(10, 5, false), extent(15, 100, true), extent(115, 1, false)];
        let checked = Extents::check(list, 10, 20, 30, false).unwrap();
        assert_eq!(checked.as_slice(), [extent(10, 5, false), extent(15, 15, true)]);
        let one = Extents::check(list, 10, 20, 30, true).unwrap();
        assert_eq!(one.as_slice(), [extent(10, 5, false)]);
    }

    #[test]
    fn the_last_extent_may_run_on_to_the_limit_unless_one_was_asked_for() {
        let list = [extent(10, 5, false), extent(15, 100, true), extent(115, 1, false)];
        let mut checked = Extents::check(list, 10, 20, 70, false).unwrap();
        assert_eq!(checked.as_slice(), [extent(10, 5, false), extent(15, 55, true)]);
        checked.cut(30);
        assert_eq!(checked.as_slice(), [extent(10, 5, false), extent(15, 15, true)]);
        checked.cut(15);
        assert_eq!(checked.as_slice(), [extent(10, 5, false)]);
        // An extent that begins where the range ends is not part of the answer.
        let checked = Extents::check(list, 10, 5, 200, false).unwrap();
        assert_eq!(checked.as_slice(), [extent(10, 5, false)]);
        let one = Extents::check(list, 20, 20, 200, true);
        assert!(one.is_err(), "it begins before the range");
        let one = Extents::check([extent(15, 100, true)], 15, 20, 200, true).unwrap();
        assert_eq!(one.as_slice(), [extent(15, 20, true)]);
    }

    #[test]
    fn req_one_merges_before_it_cuts() {
        let list = [extent(10, 5, false), extent(15, 5, false), extent(20, 5, true)];
        assert_eq!(Extents::check(list, 10, 20, 30, true).unwrap().as_slice(), [extent(10, 10, false)]);
    }

    #[test]
    fn no_list_is_longer_than_what_its_range_allows() {
        for (length, most) in [(1, 128), (64 << 10, 128), (128 << 10, 256), (1 << 25, 1 << 16), (u64::MAX / 2, 1 << 16)]
        {
            assert_eq!(Extents::limit(length), most, "{length}");
            let single_bytes = (0..length.min(1 << 20)).map(|at| extent(at, 1, at % 2 == 0));
            let checked = Extents::check(single_bytes, 0, length, length, false).unwrap();
            assert_eq!(checked.as_slice().len() as u64, (most as u64).min(length), "{length}");
            let mut pushed = Extents::new(0, length);
            let taken = (0..1 << 20).take_while(|at| pushed.push(1, at % 2 == 0, false)).count();
            assert_eq!((taken, pushed.as_slice().len()), (most, most), "{length}");
            assert!(pushed.list.capacity() <= 2 * most, "{length}");
        }
    }
}
