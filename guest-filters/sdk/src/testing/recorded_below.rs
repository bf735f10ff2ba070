//! The layer below while a record runs: it fails where it failed, and answers about extents as it
//! did.

use std::collections::{HashMap, VecDeque};

use crate::{Errno, Extent};

use super::ranges::Ranges;

/// What the record says of the layer below.
#[derive(Default)]
pub(super) struct RecordedBelow {
    /// The bytes that were read or written in the record, or are written now.
    pub(super) known: Ranges,
    /// What the filter changes now.
    pub(super) changed: Ranges,
    /// How the calls ended, by the line that shows a call, in their order.
    pub(super) outcomes: HashMap<String, VecDeque<Result<(), Errno>>>,
    pub(super) extents: HashMap<String, VecDeque<Vec<Extent>>>,
    /// How often the filter got an answer that the record does not have.
    pub(super) guesses: u64,
}

impl RecordedBelow {
    /// The filter makes this call.
    ///
    /// # Errors
    /// That of the same call in the record.
    pub(super) fn call(&mut self, line: &str) -> Result<(), Errno> {
        self.outcomes.get_mut(line).and_then(VecDeque::pop_front).unwrap_or(Ok(()))
    }

    pub(super) fn reads(&mut self, offset: u64, length: u64) {
        if !self.known.gaps(offset, length).is_empty() {
            self.guesses += 1;
        }
    }

    pub(super) fn changes(&mut self, offset: u64, length: u64) {
        self.known.add(offset, length);
        self.changed.add(offset, length);
    }

    /// The answer to this call in the record.
    pub(super) fn extents(&mut self, line: &str) -> Option<Vec<Extent>> {
        let answer = self.extents.get_mut(line).and_then(VecDeque::pop_front);
        self.guesses += u64::from(answer.is_none());
        answer
    }
}
