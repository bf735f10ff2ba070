//! The answer of a `mapping.extents`, to which the guest and the layer below it contribute.

use rbdkit_plugin_api::{Errno, Error, Extent, Extents};

use crate::connection::bindings::host::types as wit;
use crate::connection::charge::Charge;

/// What an extent in a list takes at most, in bytes. A list that grows has up to twice the memory
/// that it needs.
pub(crate) const EXTENT_BYTES: u64 = 2 * size_of::<Extent>() as u64;

/// The answer of a `mapping.extents`, which grows while the call runs.
///
/// The answers of all calls count towards the filter's `buffers-total`. At that limit an answer
/// grows no more. It is then shorter than it could be, which the protocol allows.
pub(crate) struct ExtentsAnswer {
    list: Extents,
    /// The offset at which the next part has to begin.
    expected: u64,
    charge: Charge,
}

impl ExtentsAnswer {
    /// An empty answer for `length` bytes at `offset`. `charge` is for nothing yet.
    pub(crate) fn new(offset: u64, length: u64, charge: Charge) -> ExtentsAnswer {
        ExtentsAnswer { list: Extents::new(offset, length), expected: offset, charge }
    }

    /// The offset at which the next part has to begin.
    pub(crate) fn expected(&self) -> u64 {
        self.expected
    }

    /// Appends next's extents for `length` bytes. In this layer these bytes begin at
    /// [`ExtentsAnswer::expected`].
    ///
    /// Next may describe fewer bytes than it was asked for, or more, and the guest does not learn
    /// that. Then the answer ends with this part: what the guest appends after it is left out.
    ///
    /// # Errors
    /// ENOMEM if not even the first part can be charged.
    pub(crate) fn append(&mut self, part: &Extents, length: u64) -> Result<(), Errno> {
        let whole = self.is_whole();
        self.expected = self.expected.saturating_add(length);
        let before = self.list.as_slice().len();
        // Most lists are short, so the whole part is charged first.
        let most = EXTENT_BYTES * part.as_slice().len() as u64;
        if !whole {
            return Ok(());
        }
        if !self.charge.grow(most) {
            return if before == 0 { Err(Errno::Enomem) } else { Ok(()) };
        }
        for extent in part.as_slice() {
            if !self.list.push(extent.length, extent.hole, extent.zero) {
                break;
            }
        }
        let added = EXTENT_BYTES * (self.list.as_slice().len() - before) as u64;
        self.charge.shrink(most - added);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.list.next_offset() == self.expected
    }

    /// The whole answer: what was appended, then the guest's own list.
    pub(crate) fn finish(self, own: Vec<wit::Extent>, offset: u64, length: u64, one: bool) -> Result<Extents, Error> {
        let whole = self.is_whole();
        let own = own.into_iter().filter(|_| whole).map(rbdkit_plugin_api::Extent::from);
        // The gate in front of this layer cuts the answer at the layer's size.
        Extents::check(self.list.as_slice().iter().copied().chain(own), offset, length, u64::MAX, one)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::Quota;

    fn extents(list: &[(u64, bool)], from: u64) -> Extents {
        let mut extents = Extents::new(from, 1 << 30);
        for &(length, hole) in list {
            extents.push(length, hole, hole);
        }
        extents
    }

    fn empty(offset: u64, limit: u64) -> ExtentsAnswer {
        let quota = Arc::new(Quota::new(limit));
        ExtentsAnswer::new(offset, 100, Charge::new(&quota, 0).unwrap())
    }

    #[test]
    fn an_answer_ends_where_next_knew_no_more() {
        let mut answer = empty(100, u64::MAX);
        answer.append(&extents(&[(10, false), (10, true)], 0), 20).unwrap();
        assert_eq!(answer.expected(), 120);
        // Next was asked for 50 bytes and describes 5.
        answer.append(&extents(&[(5, false)], 900), 50).unwrap();
        assert_eq!(answer.expected(), 170);
        answer.append(&extents(&[(30, true)], 0), 30).unwrap();
        let list = answer.finish(vec![], 100, 100, false).unwrap();
        assert_eq!(list.next_offset(), 125);
        assert_eq!(list.as_slice().len(), 3);
    }

    #[test]
    fn an_answer_ends_with_an_extent_that_runs_on() {
        let mut answer = empty(100, u64::MAX);
        answer.append(&extents(&[(10, false), (90, true)], 0), 20).unwrap();
        assert_eq!(answer.expected(), 120);
        answer.append(&extents(&[(30, false)], 0), 30).unwrap();
        let list = answer.finish(vec![], 100, 50, false).unwrap();
        assert_eq!(list.as_slice(), extents(&[(10, false), (90, true)], 100).as_slice());
    }

    #[test]
    fn a_list_that_does_not_follow_on_is_refused() {
        let one = |offset| wit::Extent { offset, length: 10, kind: wit::ExtentType::empty() };
        let mut answer = empty(0, u64::MAX);
        answer.append(&extents(&[(10, true)], 0), 10).unwrap();
        assert!(answer.finish(vec![one(20)], 0, 100, false).is_err());
        let mut answer = empty(0, u64::MAX);
        answer.append(&extents(&[(10, true)], 0), 10).unwrap();
        assert_eq!(answer.finish(vec![one(10)], 0, 100, false).unwrap().next_offset(), 20);
        assert!(empty(0, u64::MAX).finish(vec![], 0, 100, false).is_err());
    }

    #[test]
    fn an_answer_holds_no_more_than_its_request_and_its_filter_allow() {
        let pair = extents(&[(1, false), (1, true)], 0);
        let mut answer = empty(0, u64::MAX);
        for _ in 0..1000 {
            answer.append(&pair, 2).unwrap();
        }
        assert_eq!(answer.list.as_slice().len(), Extents::limit(100));
        assert_eq!(answer.finish(vec![], 0, 100, false).unwrap().as_slice().len(), 100);
        // The filter's buffers-total allows five extents, so the third pair finds no room.
        let mut answer = empty(0, 5 * EXTENT_BYTES);
        for _ in 0..3 {
            answer.append(&pair, 2).unwrap();
        }
        assert_eq!(answer.finish(vec![], 0, 100, false).unwrap().next_offset(), 4);
        assert_eq!(empty(0, EXTENT_BYTES).append(&pair, 2), Err(Errno::Enomem));
    }
}
