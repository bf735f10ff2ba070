//! How a request is cut to fit the block sizes of the layer below.

/// What the layer below takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Offsets and lengths are multiples of it: 2^`bits` bytes, at most 64 KiB.
    pub bits: u32,
    /// The longest request with data: a multiple of the block, at most 64 MiB.
    pub maxdata: u32,
    /// The longest one without: a multiple of the block.
    pub maxlen: u32,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Whole blocks.
    Whole {
        /// Bytes.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// A part of one block.
    Part {
        /// Where the block begins.
        block: u64,
        /// Where the part begins within it.
        skip: u32,
        /// Bytes.
        length: u32,
    },
}

impl Piece {
    /// Bytes of the request.
    pub fn length(&self) -> u32 {
        match *self {
            Piece::Whole { length, .. } | Piece::Part { length, .. } => length,
        }
    }
}

impl Sizes {
    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        1 << self.bits
    }

    /// Rounded down to whole blocks.
    pub fn down(&self, offset: u64) -> u64 {
        offset & !(self.block() - 1)
    }

    /// Rounded up to whole blocks.
    pub fn up(&self, offset: u64) -> u64 {
        self.down(offset.saturating_add(self.block() - 1))
    }

    /// Whether a request consists of whole blocks.
    pub fn fits(&self, offset: u64, length: u64) -> bool {
        (offset | length) & (self.block() - 1) == 0
    }

    /// A request in pieces of at most `most` bytes, in order and without gaps.
    pub fn cut(self, offset: u64, length: u64, most: u32) -> impl Iterator<Item = Piece> {
        let end = offset.saturating_add(length);
        let mut from = offset;
        std::iter::from_fn(move || {
            if from >= end {
                return None;
            }
            let block = self.down(from);
            let whole = self.down(end);
            let piece = if block != from || whole <= from {
                let length = (block + self.block()).min(end) - from;
                Piece::Part { block, skip: (from - block) as u32, length: length as u32 }
            } else {
                Piece::Whole { offset: from, length: (whole - from).min(most.into()) as u32 }
            };
            from += u64::from(piece.length());
            Some(piece)
        })
    }

    /// As one word: the block takes 5 bits, the longest data 27, the longest length 32.
    pub fn pack(self) -> u64 {
        u64::from(self.bits) << 59 | u64::from(self.maxdata) << 32 | u64::from(self.maxlen)
    }

    /// What [`Sizes::pack`] made.
    pub fn unpack(word: u64) -> Sizes {
        Sizes { bits: (word >> 59) as u32, maxdata: (word >> 32) as u32 & 0x7ff_ffff, maxlen: word as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { bits: 9, maxdata: 2048, maxlen: 4096 };

    fn cut(offset: u64, length: u64) -> Vec<Piece> {
        SIZES.cut(offset, length, SIZES.maxdata).collect()
    }

    #[test]
    fn whole_blocks_are_only_cut_at_the_longest() {
        let whole = |offset, length| Piece::Whole { offset, length };
        assert_eq!(cut(512, 1024), [whole(512, 1024)]);
        assert_eq!(cut(0, 5120), [whole(0, 2048), whole(2048, 2048), whole(4096, 1024)]);
        assert_eq!(cut(0, 0), []);
    }

    #[test]
    fn heads_and_tails_are_parts_of_blocks() {
        assert_eq!(
            cut(500, 1100),
            [
                Piece::Part { block: 0, skip: 500, length: 12 },
                Piece::Whole { offset: 512, length: 1024 },
                Piece::Part { block: 1536, skip: 0, length: 64 }
            ]
        );
        assert_eq!(cut(600, 10), [Piece::Part { block: 512, skip: 88, length: 10 }]);
        assert_eq!(
            cut(1000, 30),
            [Piece::Part { block: 512, skip: 488, length: 24 }, Piece::Part { block: 1024, skip: 0, length: 6 }]
        );
    }

    #[test]
    fn pieces_are_the_request_and_all_fit() {
        let mut state = 11u64;
        println!("seed {state}");
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..2000 {
            let (offset, length) = (below(20_000), below(20_000));
            let mut at = offset;
            for piece in cut(offset, length) {
                match piece {
                    Piece::Whole { offset, length } => {
                        assert_eq!(offset, at);
                        assert!(SIZES.fits(offset, length.into()) && length <= SIZES.maxdata && length > 0);
                    }
                    Piece::Part { block, skip, length } => {
                        assert_eq!(block + u64::from(skip), at);
                        assert!(SIZES.fits(block, 0) && skip + length <= 512 && length > 0 && length < 512);
                    }
                }
                at += u64::from(piece.length());
            }
            assert_eq!(at, offset + length);
        }
    }

    #[test]
    fn sizes_fit_into_a_word() {
        for sizes in [SIZES, Sizes { bits: 0, maxdata: 64 << 20, maxlen: u32::MAX }, Sizes { bits: 16, ..SIZES }] {
            assert_eq!(Sizes::unpack(sizes.pack()), sizes);
        }
    }
}
