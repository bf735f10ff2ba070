//! The answer of a `mapping.extents`, to which the guest and the layer below it contribute.

use rbdkit_plugin_api::{Error, Extents};

use crate::connection::bindings::host::types as wit;

/// The answer of a `mapping.extents`, which grows while the call runs.
pub(crate) struct ExtentsAnswer {
    list: Extents,
    /// The offset at which the next part has to begin.
    expected: u64,
}

impl ExtentsAnswer {
    pub(crate) fn new(offset: u64) -> ExtentsAnswer {
        ExtentsAnswer { list: Extents::new(offset), expected: offset }
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
    pub(crate) fn append(&mut self, part: &Extents, length: u64) {
        let whole = self.is_whole();
        self.expected = self.expected.saturating_add(length);
        if whole {
            for extent in part.as_slice() {
                if !self.list.push(extent.length, extent.hole, extent.zero) {
                    return;
                }
            }
        }
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
    use super::*;

    fn extents(list: &[(u64, bool)], from: u64) -> Extents {
        let mut extents = Extents::new(from);
        for &(length, hole) in list {
            extents.push(length, hole, hole);
        }
        extents
    }

    #[test]
    fn an_answer_ends_where_next_knew_no_more() {
        let mut answer = ExtentsAnswer::new(100);
        answer.append(&extents(&[(10, false), (10, true)], 0), 20);
        assert_eq!(answer.expected(), 120);
        // Next was asked for 50 bytes and describes 5.
        answer.append(&extents(&[(5, false)], 900), 50);
        assert_eq!(answer.expected(), 170);
        answer.append(&extents(&[(30, true)], 0), 30);
        let list = answer.finish(vec![], 100, 100, false).unwrap();
        assert_eq!(list.next_offset(), 125);
        assert_eq!(list.as_slice().len(), 3);
    }

    #[test]
    fn an_answer_ends_with_an_extent_that_runs_on() {
        let mut answer = ExtentsAnswer::new(100);
        answer.append(&extents(&[(10, false), (90, true)], 0), 20);
        assert_eq!(answer.expected(), 120);
        answer.append(&extents(&[(30, false)], 0), 30);
        let list = answer.finish(vec![], 100, 50, false).unwrap();
        assert_eq!(list.as_slice(), extents(&[(10, false), (90, true)], 100).as_slice());
    }

    #[test]
    fn a_list_that_does_not_follow_on_is_refused() {
        let one = |offset| wit::Extent { offset, length: 10, kind: wit::ExtentType::empty() };
        let mut answer = ExtentsAnswer::new(0);
        answer.append(&extents(&[(10, true)], 0), 10);
        assert!(answer.finish(vec![one(20)], 0, 100, false).is_err());
        let mut answer = ExtentsAnswer::new(0);
        answer.append(&extents(&[(10, true)], 0), 10);
        assert_eq!(answer.finish(vec![one(10)], 0, 100, false).unwrap().next_offset(), 20);
        assert!(ExtentsAnswer::new(0).finish(vec![], 0, 100, false).is_err());
    }
}
