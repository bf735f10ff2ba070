//! What the host keeps for a filter in one scope: slots, maps, scratch.

use std::collections::BTreeMap;

use crate::Errno;
use crate::host::maps::Run;
use crate::host::slots::Words;

/// The bytes that a page of scratch has.
const PAGE: u64 = 4096;

/// A map of blocks.
#[derive(Default)]
pub(super) struct BlockMap {
    /// In bytes; 0 before the map is sized.
    block: u32,
    states: Vec<u8>,
}

impl BlockMap {
    pub(super) fn resize(&mut self, block: u32, bytes: u64) -> Result<(), Errno> {
        if block == 0 || self.block != 0 && self.block != block {
            return Err(Errno::Einval);
        }
        self.block = block;
        let blocks = bytes.div_ceil(block.into()) as usize;
        self.states.resize(blocks.max(self.states.len()), 0);
        Ok(())
    }

    pub(super) fn is_sized(&self) -> bool {
        self.block != 0
    }

    pub(super) fn run(&self, first: u64, limit: u64) -> Run {
        let rest = self.states.get(first as usize..).unwrap_or_default();
        let state = rest.first().copied().unwrap_or(0);
        let count =
            rest.iter().take(limit.min(usize::MAX as u64) as usize).take_while(|other| **other == state).count();
        Run { state, count: count as u64 }
    }

    pub(super) fn find(&self, first: u64, states: u8) -> Option<u64> {
        let rest = self.states.get(first as usize..)?;
        rest.iter().position(|state| states >> state & 1 == 1).map(|n| first + n as u64)
    }

    /// The states of a range. Panics for a range outside of the map.
    pub(super) fn range(&mut self, first: u64, count: u64) -> &mut [u8] {
        let blocks = self.states.len() as u64;
        match first.checked_add(count).filter(|end| *end <= blocks) {
            Some(end) => &mut self.states[first as usize..end as usize],
            None => panic!("maps: blocks {first}+{count} are outside of the map, which has {blocks}"),
        }
    }

    pub(super) fn count(&self, state: u8) -> u64 {
        self.states.iter().filter(|other| **other == state).count() as u64
    }
}

/// The temporary file. It is sparse.
#[derive(Default)]
pub(super) struct Scratch {
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Scratch {
    /// Calls `piece` with each page of a range: the page's number, the range within the page, and
    /// the position in the request.
    fn pieces(offset: u64, length: u64, mut piece: impl FnMut(u64, std::ops::Range<usize>, usize)) {
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let n = (PAGE - at % PAGE).min(length - done);
            piece(at / PAGE, (at % PAGE) as usize..(at % PAGE + n) as usize, done as usize);
            done += n;
        }
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        Self::pieces(offset, bytes.len() as u64, |page, range, at| {
            let to = &mut bytes[at..at + range.len()];
            match self.pages.get(&page) {
                Some(page) => to.copy_from_slice(&page[range]),
                None => to.fill(0),
            }
        });
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], quota: u64) -> Result<(), Errno> {
        let mut more = 0;
        Self::pieces(offset, bytes.len() as u64, |page, _, _| more += u64::from(!self.pages.contains_key(&page)));
        if self.allocated() + more * PAGE > quota {
            return Err(Errno::Enospc);
        }
        Self::pieces(offset, bytes.len() as u64, |page, range, at| {
            let from = &bytes[at..at + range.len()];
            self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize])[range].copy_from_slice(from);
        });
        Ok(())
    }

    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        self.pages.retain(|number, page| {
            let (start, stop) = (number * PAGE, number * PAGE + PAGE);
            let (from, to) = (offset.max(start), end.min(stop));
            if from < to {
                page[(from - start) as usize..(to - start) as usize].fill(0);
            }
            !(offset <= start && stop <= end)
        });
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }
}

/// The keys of ciphers.
#[derive(Default)]
pub(super) struct Keys {
    /// The number of the last key.
    last: u32,
    /// The number and the bytes of each key.
    keys: Vec<(u32, Vec<u8>)>,
}

impl Keys {
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> Result<u32, Errno> {
        if self.keys.len() == 16 {
            return Err(Errno::Enospc);
        }
        self.last += 1;
        self.keys.push((self.last, bytes));
        Ok(self.last)
    }

    pub(super) fn get(&self, number: u32) -> Result<&[u8], Errno> {
        let found = self.keys.iter().find(|(known, _)| *known == number);
        found.map(|(_, bytes)| &bytes[..]).ok_or(Errno::Enoent)
    }

    pub(super) fn free(&mut self, number: u32) {
        self.keys.retain(|(known, _)| *known != number);
    }
}

/// The state of one scope.
pub(super) struct SharedState {
    pub(super) slots: [Words; 16],
    pub(super) maps: [BlockMap; 8],
    pub(super) keys: Keys,
    pub(super) scratch: Scratch,
}

impl Default for SharedState {
    fn default() -> SharedState {
        SharedState {
            slots: [Words { version: 0, a: 0, b: 0, c: 0, d: 0 }; 16],
            maps: Default::default(),
            keys: Keys::default(),
            scratch: Scratch::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_sparse_and_keeps_to_its_quota() {
        let mut scratch = Scratch::default();
        scratch.write(4000, &[7; 200], 8192).unwrap();
        assert_eq!(scratch.allocated(), 8192);
        assert_eq!(scratch.write(1 << 20, &[1], 8192), Err(Errno::Enospc));
        let mut bytes = [1; 202];
        scratch.read(3999, &mut bytes);
        assert_eq!((bytes[0], bytes[1], bytes[200], bytes[201]), (0, 7, 7, 0));
        scratch.punch(0, 4096);
        assert_eq!(scratch.allocated(), 4096);
        scratch.read(3999, &mut bytes);
        assert_eq!((bytes[96], bytes[97], bytes[200]), (0, 7, 7));
    }

    #[test]
    fn a_map_counts_runs_of_one_state() {
        let mut map = BlockMap::default();
        map.resize(512, 512 * 9 + 1).unwrap();
        map.range(2, 3).fill(1);
        assert_eq!((map.run(0, 99), map.run(2, 2)), (Run { state: 0, count: 2 }, Run { state: 1, count: 2 }));
        assert_eq!((map.run(10, 5), map.find(0, 0b10), map.count(1)), (Run { state: 0, count: 0 }, Some(2), 3));
        assert_eq!(map.resize(1024, 1), Err(Errno::Einval));
    }
}
