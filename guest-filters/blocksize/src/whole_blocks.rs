//! Joins next's extents to extents of whole blocks.
//!
//! A block that next describes in several parts has the bitwise and of their types: it is a hole
//! only if all of it is a hole, and reads as zero only if all of it does. Data is the type 0, and
//! always a correct answer.

/// A run of whole blocks of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// Bit 0: it is a hole. Bit 1: it reads as zero.
    pub kind: u8,
}

/// The whole blocks of an answer that grows.
#[derive(Debug)]
pub struct WholeBlocks {
    /// Where the answer starts: the start of a block.
    start: u64,
    /// The size of a block in bytes, a power of two.
    block: u64,
    runs: Vec<Run>,
    /// The known part of the block after the runs, with its length and its type so far.
    part: Option<(u64, u8)>,
}

impl WholeBlocks {
    /// An empty answer that starts at `start`, a multiple of `block`.
    pub fn new(start: u64, block: u64) -> WholeBlocks {
        WholeBlocks { start, block, runs: Vec::new(), part: None }
    }

    /// Where the runs end.
    fn end(&self) -> u64 {
        self.runs.last().map_or(self.start, |run| run.offset + run.length)
    }

    fn add(&mut self, length: u64, kind: u8) {
        let offset = self.end();
        match self.runs.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.kind == kind => last.length += length,
            _ => self.runs.push(Run { offset, length, kind }),
        }
    }

    /// Adds next's extent of `length` bytes, which follows the one before.
    pub fn push(&mut self, length: u64, kind: u8) {
        let mut left = length;
        if let Some((known, so_far)) = self.part {
            let taken = left.min(self.block - known);
            left -= taken;
            self.part = Some((known + taken, so_far & kind));
            if known + taken < self.block {
                return;
            }
            self.part = None;
            self.add(self.block, so_far & kind);
        }
        let rest = left & (self.block - 1);
        self.add(left - rest, kind);
        if rest > 0 {
            self.part = Some((rest, kind));
        }
    }

    /// Where the rest of the first block starts, if the answer has no block without it.
    pub fn missing(&self) -> Option<u64> {
        match self.part {
            Some((known, kind)) if self.runs.is_empty() && kind != 0 => Some(self.start + known),
            _ => None,
        }
    }

    /// The runs from `offset` on, which is in the first block. An unfinished block that has data
    /// counts as data, and any other is left out unless it is the first.
    pub fn finish(mut self, offset: u64) -> Vec<Run> {
        match self.part {
            Some((_, 0)) => self.add(self.block, 0),
            Some(_) if self.runs.is_empty() => self.add(self.block, 0),
            _ => {}
        }
        if let Some(first) = self.runs.first_mut() {
            first.length -= offset - first.offset;
            first.offset = offset;
        }
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(start: u64, list: &[(u64, u8)], offset: u64) -> Vec<(u64, u64, u8)> {
        let mut blocks = WholeBlocks::new(start, 1024);
        list.iter().for_each(|(length, kind)| blocks.push(*length, *kind));
        blocks.finish(offset).iter().map(|run| (run.offset, run.length, run.kind)).collect()
    }

    #[test]
    fn what_lies_within_a_block_is_joined() {
        assert_eq!(joined(0, &[(100, 3), (924, 2), (1024, 3)], 0), [(0, 1024, 2), (1024, 1024, 3)]);
        assert_eq!(joined(1024, &[(1000, 3), (1048, 0), (4096, 3)], 1030), [(1030, 2042, 0), (3072, 4096, 3)]);
        assert_eq!(joined(0, &[(3000, 3), (72, 3), (1024, 1)], 512), [(512, 2560, 3), (3072, 1024, 1)]);
    }

    #[test]
    fn an_unfinished_block_is_data_if_it_has_data_and_otherwise_left_out() {
        assert_eq!(joined(0, &[(2048, 3), (10, 0)], 0), [(0, 2048, 3), (2048, 1024, 0)]);
        assert_eq!(joined(0, &[(2048, 3), (10, 2)], 0), [(0, 2048, 3)]);
        assert_eq!(joined(0, &[(10, 3)], 5), [(5, 1019, 0)]);
    }

    #[test]
    fn only_the_rest_of_the_first_block_is_missing() {
        let mut blocks = WholeBlocks::new(2048, 1024);
        blocks.push(10, 3);
        assert_eq!(blocks.missing(), Some(2058));
        blocks.push(1000, 3);
        assert_eq!(blocks.missing(), Some(3058));
        blocks.push(4, 2);
        assert_eq!(blocks.missing(), Some(3062));
        blocks.push(20, 2);
        assert_eq!(blocks.missing(), None);
        assert_eq!(blocks.finish(2100), [Run { offset: 2100, length: 972, kind: 2 }]);
        // The rest cannot change the type of a block that has data.
        let mut blocks = WholeBlocks::new(0, 1024);
        blocks.push(10, 0);
        assert_eq!(blocks.missing(), None);
    }

    #[test]
    fn every_byte_of_a_run_is_what_the_run_says() {
        let mut state = 5u64;
        println!("seed {state}");
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..2000 {
            let mut kinds = Vec::new();
            let mut blocks = WholeBlocks::new(1024, 1024);
            for _ in 0..1 + below(20) {
                let (length, kind) = (1 + below(1500), below(4) as u8);
                blocks.push(length, kind);
                kinds.resize(kinds.len() + length as usize, kind);
            }
            let offset = 1024 + below(1024);
            let mut at = offset;
            for run in blocks.finish(offset) {
                assert!(run.offset == at && run.length > 0);
                at += run.length;
                assert_eq!(at % 1024, 0);
                let known = kinds.iter().take((at - 1024) as usize).skip((run.offset - 1024) as usize);
                for kind in known {
                    assert_eq!(run.kind & !kind, 0);
                }
            }
            assert!(at > offset && at + 1024 > 1024 + kinds.len() as u64);
        }
    }
}
