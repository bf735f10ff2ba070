//! A list of extents that a decoder makes.

use crate::{Errno, Extent, ExtentType};

/// A list may end before the range does. The client then asks again, so this bounds only what one
/// answer takes: 384 KiB.
const MOST: usize = 16 << 10;

/// The answer to a question about extents, as it grows.
#[derive(Debug)]
pub struct ExtentList {
    pub(super) list: Vec<Extent>,
    at: u64,
    end: u64,
    pub(super) one: bool,
}

impl ExtentList {
    /// An empty list for `length` bytes from `offset` on.
    pub fn new(offset: u64, length: u64) -> ExtentList {
        ExtentList { list: Vec::new(), at: offset, end: offset.saturating_add(length), one: false }
    }

    /// The same list, which is full as soon as its first extent is known.
    pub fn only_one(mut self, one: bool) -> ExtentList {
        self.one = one;
        self
    }

    /// The offset at which the list ends now: the next extent begins there.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes of the range are not described.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Whether nothing more is wanted.
    pub fn is_full(&self) -> bool {
        self.left() == 0 || self.list.len() > if self.one { 1 } else { MOST }
    }

    /// The next `length` bytes are of this kind. An extent may end beyond the range.
    pub fn push(&mut self, length: u64, kind: ExtentType) {
        if length == 0 || self.is_full() {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.kind == kind => last.length = last.length.saturating_add(length),
            _ => self.list.push(Extent { offset: self.at, length, kind }),
        }
        self.at = self.at.saturating_add(length);
    }

    /// Appends what `ask` answers about the rest of the range, in questions of at most 2 GiB.
    ///
    /// # Errors
    /// Those of `ask`.
    pub(super) fn push_answers(&mut self, ask: impl Fn(u64, u64) -> Result<Vec<Extent>, Errno>) -> Result<(), Errno> {
        while !self.is_full() {
            for extent in ask(self.at(), self.left().min(1 << 31))? {
                self.push(extent.length, extent.kind);
            }
        }
        Ok(())
    }

    /// The next `length` bytes hold data.
    pub fn push_data(&mut self, length: u64) {
        self.push(length, ExtentType::empty());
    }

    /// The next `length` bytes are not allocated and read as zero.
    pub fn push_hole(&mut self, length: u64) {
        self.push(length, ExtentType::HOLE | ExtentType::ZERO);
    }

    /// The next `length` bytes are allocated and read as zero.
    pub fn push_zero(&mut self, length: u64) {
        self.push(length, ExtentType::ZERO);
    }

    /// The list for the host. Of a list that has to have one extent it has one.
    ///
    /// # Errors
    /// EIO for an empty list: the decoder described nothing.
    pub fn into_answer(mut self) -> Result<Vec<Extent>, Errno> {
        if self.one {
            self.list.truncate(1);
        }
        if self.list.is_empty() { Err(Errno::Eio) } else { Ok(self.list) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_one_kind_become_one() {
        let mut list = ExtentList::new(10, 100);
        list.push_data(5);
        list.push_data(5);
        list.push_hole(0);
        list.push_hole(90);
        assert!(list.is_full());
        list.push_zero(1);
        let hole = ExtentType::HOLE | ExtentType::ZERO;
        let expected = [
            Extent { offset: 10, length: 10, kind: ExtentType::empty() },
            Extent { offset: 20, length: 90, kind: hole },
        ];
        assert_eq!(list.into_answer().unwrap(), expected);
    }

    #[test]
    fn a_list_of_one_is_full_when_the_second_extent_begins() {
        let mut list = ExtentList::new(0, 100).only_one(true);
        list.push_data(5);
        assert!(!list.is_full(), "more data may follow");
        list.push_data(5);
        list.push_hole(5);
        assert!(list.is_full());
        let expected = [Extent { offset: 0, length: 10, kind: ExtentType::empty() }];
        assert_eq!(list.into_answer().unwrap(), expected);
    }
}
