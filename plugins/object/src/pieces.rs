//! A range of a disk as pieces of its blocks.

use std::ops::Range;

/// The part of one block that a range covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: u64,
    /// Within the block.
    pub(crate) within: Range<u64>,
    /// Where the piece begins, from the beginning of the range.
    pub(crate) at: u64,
}

impl Piece {
    pub(crate) fn length(&self) -> u64 {
        self.within.end - self.within.start
    }
}

/// The pieces of a range, whose end fits 64 bits.
pub(crate) fn pieces(offset: u64, length: u64, block_size: u64) -> impl Iterator<Item = Piece> + Send {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let block = at / block_size;
        let from = at % block_size;
        let to = block_size.min(from + (end - at));
        let piece = Piece { block, within: from..to, at: at - offset };
        at += to - from;
        Some(piece)
    })
}

/// The blocks that a range covers as a whole.
pub(crate) fn whole_blocks(offset: u64, length: u64, block_size: u64) -> Range<u64> {
    let first = offset.div_ceil(block_size);
    let end = (offset + length) / block_size;
    first..end.max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_once_and_none_crosses_a_block() {
        for (offset, length) in [(0, 1), (0, 4), (3, 2), (4, 8), (5, 20), (7, 1)] {
            let all: Vec<Piece> = pieces(offset, length, 4).collect();
            let bytes: Vec<u64> =
                all.iter().flat_map(|piece| piece.within.clone().map(|at| piece.block * 4 + at)).collect();
            assert_eq!(bytes, (offset..offset + length).collect::<Vec<_>>());
            assert!(all.iter().all(|piece| piece.within.end <= 4 && piece.length() > 0));
            assert!(all.windows(2).all(|two| two[0].at + two[0].length() == two[1].at));
            let whole: Vec<u64> = all.iter().filter(|piece| piece.length() == 4).map(|piece| piece.block).collect();
            assert_eq!(whole_blocks(offset, length, 4).collect::<Vec<_>>(), whole, "{offset} {length}");
        }
    }
}
