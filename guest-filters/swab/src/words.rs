//! Words of 1, 2, 4 or 8 bytes.

/// The length of a word in bytes, a power of two up to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u32);

/// A run of bytes: its length, and its type as bits. A bit that is set holds for all bytes.
pub type Run = (u64, u8);

impl Word {
    /// The word of this many bits: 8, 16, 32 or 64.
    pub fn from_bits(bits: u32) -> Option<Word> {
        matches!(bits, 8 | 16 | 32 | 64).then_some(Word(bits / 8))
    }

    /// Rounds down to whole words.
    pub fn down(self, bytes: u64) -> u64 {
        bytes & !u64::from(self.0 - 1)
    }

    /// Rounds up to whole words.
    pub fn up(self, bytes: u64) -> u64 {
        self.down(bytes + u64::from(self.0 - 1))
    }

    /// Whether a request is made of whole words.
    pub fn fits(self, offset: u64, length: u64) -> bool {
        self.down(offset | length) == offset | length
    }

    /// Makes runs end with whole words. A word that lies in several runs has a type only if all of
    /// them have it: its bytes change places. A word that is not complete at the end is left out,
    /// unless it is the only one, which then is data.
    pub fn align(self, runs: impl IntoIterator<Item = Run>) -> Vec<Run> {
        let word = u64::from(self.0);
        let mut aligned: Vec<Run> = Vec::new();
        let mut push = |length, kind| match aligned.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.1 == kind => last.0 += length,
            _ => aligned.push((length, kind)),
        };
        // How many bytes of the next word have come, and the type that they share.
        let (mut begun, mut shared) = (0, u8::MAX);
        for (mut length, kind) in runs {
            if begun > 0 {
                let taken = length.min(word - begun);
                (begun, shared, length) = (begun + taken, shared & kind, length - taken);
                if begun < word {
                    continue;
                }
                push(word, shared);
            }
            push(self.down(length), kind);
            (begun, shared) = (length % word, kind);
        }
        if aligned.is_empty() { vec![(word, 0)] } else { aligned }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_8_16_32_or_64_bits() {
        let words = [8, 16, 32, 64].map(|bits| Word::from_bits(bits).unwrap().0);
        assert_eq!(words, [1, 2, 4, 8]);
        assert!([0, 1, 7, 17, 128].iter().all(|bits| Word::from_bits(*bits).is_none()));
    }

    #[test]
    fn whole_words_fit() {
        let word = Word(4);
        assert!(word.fits(8, 4) && !word.fits(8, 3) && !word.fits(6, 4));
        assert_eq!((word.down(7), word.up(5), word.up(8)), (4, 8, 8));
        assert!(Word(1).fits(3, 5));
    }

    #[test]
    fn a_word_that_lies_in_several_runs_has_only_what_they_share() {
        let word = Word(4);
        assert_eq!(word.align([(8, 3), (8, 0)]), [(8, 3), (8, 0)]);
        assert_eq!(word.align([(10, 3), (6, 0)]), [(8, 3), (8, 0)]);
        assert_eq!(word.align([(9, 3), (1, 2), (1, 3), (1, 2), (4, 3)]), [(8, 3), (4, 2), (4, 3)]);
        assert_eq!(word.align([(5, 3), (5, 3), (2, 3)]), [(12, 3)]);
        assert_eq!(word.align([(7, 1)]), [(4, 1)]);
        assert_eq!(word.align([(3, 3)]), [(4, 0)]);
        assert_eq!(Word(1).align([(3, 3), (1, 0)]), [(3, 3), (1, 0)]);
    }
}
