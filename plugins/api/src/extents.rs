//! Extents: which runs of an export are holes or read as zero.

use crate::error::{Errno, Error, Result};

/// One run. A *hole* is not allocated; a *zero* reads as zero. Most holes are both.
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
    /// One past its last byte. Only for extents that have passed [`Extents::push`] or [`Extents::check`].
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The answer to an extents request: ascending, contiguous, not empty once complete, beginning at the requested offset.
/// Neighbours of one kind are merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    from: u64,
    list: Vec<Extent>,
}

/// The most extents an answer keeps. Beyond it the answer is cut short, which the protocol allows: the client asks again from
/// there. 2^20 are 32 MiB here and 8 MiB on the wire; nbdkit has the same bound.
pub const MAX_EXTENTS: usize = 1 << 20;

impl Extents {
    /// No extents yet; the first has to begin at `from`.
    pub fn new(from: u64) -> Extents {
        Extents { from, list: Vec::new() }
    }

    /// One extent of data: what is said of a layer that does not know better.
    pub fn all_data(offset: u64, length: u64) -> Extents {
        Extents { from: offset, list: vec![Extent { offset, length, hole: false, zero: false }] }
    }

    /// Where the next extent has to begin.
    pub fn next_offset(&self) -> u64 {
        self.list.last().map_or(self.from, Extent::end)
    }

    /// Adds `length` bytes at the end, merged with the last extent if of its kind. Nothing is added for a length of 0, nor beyond
    /// [`MAX_EXTENTS`] (then false).
    pub fn push(&mut self, length: u64, hole: bool, zero: bool) -> bool {
        if length == 0 {
            return true;
        }
        let offset = self.next_offset();
        let full = self.list.len() >= MAX_EXTENTS;
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

    /// Takes a list as somebody else made it, checks it and cuts it to `offset..offset + length`.
    ///
    /// # Errors
    /// EIO with what was wrong, if it is empty, does not begin at `offset`, has gaps, overlaps or descends, or an extent is empty or
    /// overflows.
    pub fn check(list: impl IntoIterator<Item = Extent>, offset: u64, length: u64, req_one: bool) -> Result<Extents> {
        let lie =
            |what: String| Error::new(Errno::Eio, format!("bad extents for offset {offset} length {length}: {what}"));
        let limit = offset.checked_add(length).ok_or_else(|| lie("the range overflows".into()))?;
        let mut checked = Extents::new(offset);
        let mut expected = offset;
        for extent in list {
            if extent.offset != expected {
                return Err(lie(format!("one begins at {} instead of {expected}", extent.offset)));
            }
            if extent.length == 0 {
                return Err(lie(format!("an empty one at {expected}")));
            }
            let end = extent
                .offset
                .checked_add(extent.length)
                .ok_or_else(|| lie(format!("the one at {expected} overflows")))?;
            let kept = end.min(limit) - expected;
            if !checked.push(kept, extent.hole, extent.zero) || end >= limit || (req_one && checked.list.len() > 1) {
                break;
            }
            expected = end;
        }
        if checked.list.is_empty() {
            return Err(lie("there are none".into()));
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
        let mut extents = Extents::new(10);
        extents.push(5, false, false);
        extents.push(0, true, true);
        extents.push(5, false, false);
        extents.push(5, true, true);
        assert_eq!(extents.as_slice(), [extent(10, 10, false), extent(20, 5, true)]);
    }

    #[test]
    fn lies_are_refused() {
        let check = |list: &[Extent]| Extents::check(list.iter().copied(), 10, 20, false);
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
        let checked = Extents::check(list, 10, 20, false).unwrap();
        assert_eq!(checked.as_slice(), [extent(10, 5, false), extent(15, 15, true)]);
        let one = Extents::check(list, 10, 20, true).unwrap();
        assert_eq!(one.as_slice(), [extent(10, 5, false)]);
    }

    #[test]
    fn req_one_merges_before_it_cuts() {
        let list = [extent(10, 5, false), extent(15, 5, false), extent(20, 5, true)];
        assert_eq!(Extents::check(list, 10, 20, true).unwrap().as_slice(), [extent(10, 10, false)]);
    }
}
