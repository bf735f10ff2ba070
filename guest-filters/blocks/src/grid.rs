//! The division of a disk into blocks.

/// Blocks of a power of two bytes. The last block of a disk may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    bits: u32,
}

/// What a range touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The first block.
    pub first: u64,
    /// How many blocks, whole or in part.
    pub count: u64,
    /// Of these, the first that is whole.
    pub whole: u64,
    /// How many are whole.
    pub wholes: u64,
}

impl Touched {
    /// The blocks that are touched in part: none, one or two.
    pub fn partial(&self) -> impl Iterator<Item = u64> + use<> {
        let last = self.first + self.count - 1;
        let head = (self.wholes == 0 || self.whole != self.first).then_some(self.first);
        let tail = (last != self.first && (self.wholes == 0 || self.whole + self.wholes <= last)).then_some(last);
        head.into_iter().chain(tail)
    }
}

impl Grid {
    /// Blocks of 2^`bits` bytes.
    pub const fn new(bits: u32) -> Grid {
        Grid { bits }
    }

    /// Bytes of a block.
    pub fn block(self) -> u64 {
        1 << self.bits
    }

    /// The block that holds a byte.
    pub fn of(self, offset: u64) -> u64 {
        offset >> self.bits
    }

    /// The first byte of a block.
    pub fn start(self, block: u64) -> u64 {
        block << self.bits
    }

    /// Whether it is the first byte of a block.
    pub fn is_start(self, offset: u64) -> bool {
        offset & (self.block() - 1) == 0
    }

    /// How many blocks a range touches, from [`Grid::of`] its start on.
    pub fn count(self, offset: u64, end: u64) -> u64 {
        self.of(end - 1) - self.of(offset) + 1
    }

    /// What the range touches. A block that ends at the end of the disk is whole if the range reaches that far. `end` lies behind `offset`.
    pub fn touched(self, offset: u64, end: u64, size: u64) -> Touched {
        let (first, count) = (self.of(offset), self.count(offset, end));
        let whole = if self.is_start(offset) { first } else { first + 1 };
        let end_whole = if self.is_start(end) || end == size { self.of(end - 1) + 1 } else { self.of(end) };
        Touched { first, count, whole, wholes: end_whole.saturating_sub(whole) }
    }

    /// The bytes of some blocks, as offset and end.
    pub fn span(self, first: u64, count: u64, size: u64) -> (u64, u64) {
        (self.start(first), self.start(first + count).min(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_partial_blocks_are_told_apart() {
        let grid = Grid::new(4);
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
            let touched = grid.touched(offset, end, 100);
            assert_eq!((touched.whole, touched.wholes), whole, "{offset}..{end}");
            assert_eq!(touched.partial().collect::<Vec<_>>(), partial, "{offset}..{end}");
        }
    }
}
