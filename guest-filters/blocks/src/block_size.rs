//! The division of a disk into blocks.

/// The size of the blocks, a power of two. The last block of a disk may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    bits: u32,
}

/// The blocks that a range touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchedBlocks {
    /// The first block.
    pub first: u64,
    /// How many blocks are touched, wholly or in part.
    pub count: u64,
    /// The first of them that is touched wholly.
    pub first_whole: u64,
    /// How many are touched wholly.
    pub whole_count: u64,
}

impl TouchedBlocks {
    /// The blocks that are touched in part: none, one or two.
    pub fn partial(&self) -> impl Iterator<Item = u64> + use<> {
        let last = self.first + self.count - 1;
        let head = (self.whole_count == 0 || self.first_whole != self.first).then_some(self.first);
        let has_tail = last != self.first && (self.whole_count == 0 || self.first_whole + self.whole_count <= last);
        head.into_iter().chain(has_tail.then_some(last))
    }
}

impl BlockSize {
    /// Blocks of 2^`bits` bytes.
    pub const fn new(bits: u32) -> BlockSize {
        BlockSize { bits }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// The number of the block that holds the byte at `offset`.
    pub fn block_at(self, offset: u64) -> u64 {
        offset >> self.bits
    }

    /// The offset of the first byte of a block.
    pub fn start(self, block: u64) -> u64 {
        block << self.bits
    }

    /// Whether a block starts at `offset`.
    pub fn is_start(self, offset: u64) -> bool {
        offset & (self.bytes() - 1) == 0
    }

    /// How many blocks the range `offset..end` touches. The range must not be empty.
    pub fn count(self, offset: u64, end: u64) -> u64 {
        self.block_at(end - 1) - self.block_at(offset) + 1
    }

    /// The blocks that the range `offset..end` touches on a disk of `size` bytes. A short last
    /// block counts as whole if the range reaches to the end of the disk. The range must not be
    /// empty.
    pub fn touched(self, offset: u64, end: u64, size: u64) -> TouchedBlocks {
        let (first, count) = (self.block_at(offset), self.count(offset, end));
        let first_whole = if self.is_start(offset) { first } else { first + 1 };
        let ends_whole = self.is_start(end) || end == size;
        let end_whole = if ends_whole { self.block_at(end - 1) + 1 } else { self.block_at(end) };
        TouchedBlocks { first, count, first_whole, whole_count: end_whole.saturating_sub(first_whole) }
    }

    /// The bytes of `count` blocks on a disk of `size` bytes, as start and end.
    pub fn span(self, first: u64, count: u64, size: u64) -> (u64, u64) {
        (self.start(first), self.start(first + count).min(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_partial_blocks_are_distinguished() {
        let block_size = BlockSize::new(4);
        for (offset, end, whole, partial) in [
            (0, 16, (0, 1), vec![]),
            (0, 32, (0, 2), vec![]),
            (1, 32, (1, 1), vec![0]),
            (0, 31, (0, 1), vec![1]),
            (1, 31, (1, 0), vec![0, 1]),
            (3, 9, (1, 0), vec![0]),
            (3, 16, (1, 0), vec![0]),
            (0, 5, (0, 0), vec![0]),
            (17, 60, (2, 1), vec![1, 3]),
            (90, 100, (6, 1), vec![5]),
            (96, 100, (6, 1), vec![]),
            (97, 100, (7, 0), vec![6]),
            (96, 99, (6, 0), vec![6]),
        ] {
            let touched = block_size.touched(offset, end, 100);
            assert_eq!((touched.first_whole, touched.whole_count), whole, "{offset}..{end}");
            assert_eq!(touched.partial().collect::<Vec<_>>(), partial, "{offset}..{end}");
        }
    }
}
