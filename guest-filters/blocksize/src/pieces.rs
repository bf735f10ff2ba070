//! Splits a request into pieces that fit the block sizes of the layer below.

/// The block sizes that requests to the layer below must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Offsets and lengths are multiples of 2^`bits` bytes, at most 64 KiB.
    pub bits: u32,
    /// The longest request with data in bytes: a multiple of the block, at most 64 MiB.
    pub maxdata: u32,
    /// The longest request without data in bytes: a multiple of the block.
    pub maxlen: u32,
}

/// A piece of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Whole blocks.
    Whole {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
    },
    /// A part of one block.
    Part {
        /// Where the block starts.
        block: u64,
        /// Where the part starts within the block.
        skip: u32,
        /// In bytes.
        length: u32,
    },
}

impl Piece {
    /// How many bytes of the request it covers.
    pub fn length(&self) -> u32 {
        match *self {
            Piece::Whole { length, .. } | Piece::Part { length, .. } => length,
        }
    }
}

impl Sizes {
    /// The size of a block in bytes.
    pub fn block(&self) -> u64 {
        1 << self.bits
    }

    /// Rounds down to a multiple of the block.
    pub fn down(&self, offset: u64) -> u64 {
        offset & !(self.block() - 1)
    }

    /// Rounds up to a multiple of the block.
    pub fn up(&self, offset: u64) -> u64 {
        self.down(offset.saturating_add(self.block() - 1))
    }

    /// Whether a request consists of whole blocks.
    pub fn fits(&self, offset: u64, length: u64) -> bool {
        (offset | length) & (self.block() - 1) == 0
    }

    /// Splits a request into pieces of at most `max` bytes, in ascending order and without gaps.
    pub fn split(self, offset: u64, length: u64, max: u32) -> impl Iterator<Item = Piece> {
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
                Piece::Whole { offset: from, length: (whole - from).min(max.into()) as u32 }
            };
            from += u64::from(piece.length());
            Some(piece)
        })
    }

    /// Packs the sizes into one word: 5 bits for `bits`, 27 for `maxdata`, 32 for `maxlen`.
    pub fn pack(self) -> u64 {
        u64::from(self.bits) << 59 | u64::from(self.maxdata) << 32 | u64::from(self.maxlen)
    }

    /// The inverse of [`Sizes::pack`].
    pub fn unpack(word: u64) -> Sizes {
        Sizes { bits: (word >> 59) as u32, maxdata: (word >> 32) as u32 & 0x7ff_ffff, maxlen: word as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { bits: 9, maxdata: 2048, maxlen: 4096 };

    fn split(offset: u64, length: u64) -> Vec<Piece> {
        SIZES.split(offset, length, SIZES.maxdata).collect()
    }

    #[test]
    fn whole_blocks_are_only_split_at_the_longest_length() {
        let whole = |offset, length| Piece::Whole { offset, length };
        assert_eq!(split(512, 1024), [whole(512, 1024)]);
        assert_eq!(split(0, 5120), [whole(0, 2048), whole(2048, 2048), whole(4096, 1024)]);
        assert_eq!(split(0, 0), []);
    }

    #[test]
    fn unaligned_heads_and_tails_are_parts_of_blocks() {
        assert_eq!(
            split(500, 1100),
            [
                Piece::Part { block: 0, skip: 500, length: 12 },
                Piece::Whole { offset: 512, length: 1024 },
                Piece::Part { block: 1536, skip: 0, length: 64 }
            ]
        );
        assert_eq!(split(600, 10), [Piece::Part { block: 512, skip: 88, length: 10 }]);
        assert_eq!(
            split(1000, 30),
            [Piece::Part { block: 512, skip: 488, length: 24 }, Piece::Part { block: 1024, skip: 0, length: 6 }]
        );
    }

    #[test]
    fn pieces_cover_the_request_and_all_fit() {
        let mut state = 11u64;
        println!("seed {state}");
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..2000 {
            let (offset, length) = (below(20_000), below(20_000));
            let mut at = offset;
            for piece in split(offset, length) {
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
