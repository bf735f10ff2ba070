//! A chunk of a map: 2048 blocks of two bits each, or one state for all of them.
//!
//! All functions work on words of 32 blocks. A few bit operations find the blocks of a word that
//! have a state. The result is a mask with one bit for each block, at the lower of the block's two
//! bits ([`LOW`]).

/// How many blocks a chunk has.
pub(in crate::state) const CHUNK_BLOCKS: u64 = 2048;
/// How many blocks a word has.
const PER_WORD: usize = 32;
const WORDS: usize = CHUNK_BLOCKS as usize / PER_WORD;
/// The lower bit of each block's two.
const LOW: u64 = 0x5555_5555_5555_5555;

/// For each state, by how much its number of blocks has changed.
pub(super) type StateDeltas = [i64; 4];

enum Body {
    Uniform(u8),
    Mixed(Box<[u64; WORDS]>),
}

/// 2048 blocks in a row and the state of each.
pub(super) struct Chunk {
    /// How many blocks have each state; they add up to [`CHUNK_BLOCKS`].
    counts: [u16; 4],
    body: Body,
}

/// A word all of whose blocks are in `state`.
fn all(state: u8) -> u64 {
    u64::from(state & 3) * LOW
}

/// The blocks of `word` that are in one of `states` (bit n stands for state n).
fn among(word: u64, states: u8) -> u64 {
    let (low, high) = (word & LOW, (word >> 1) & LOW);
    let mut found = 0;
    for (state, blocks) in [!low & !high, low & !high, !low & high, low & high].into_iter().enumerate() {
        if states & (1 << state) != 0 {
            found |= blocks;
        }
    }
    found & LOW
}

/// The mask of the blocks `from..to` of a word.
fn span(from: usize, to: usize) -> u64 {
    let below = |n: usize| if n >= PER_WORD { u64::MAX } else { (1u64 << (2 * n)) - 1 };
    below(to) & !below(from) & LOW
}

impl Chunk {
    /// A chunk all of whose blocks are in `state`.
    pub(super) fn uniform(state: u8) -> Chunk {
        let mut counts = [0; 4];
        counts[usize::from(state & 3)] = CHUNK_BLOCKS as u16;
        Chunk { counts, body: Body::Uniform(state & 3) }
    }

    /// Whether it keeps the state of each block, which takes memory ([`Body::Mixed`]).
    pub(super) fn is_mixed(&self) -> bool {
        matches!(self.body, Body::Mixed(_))
    }

    /// Whether every block has state 0. The map does not keep such a chunk.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self.body, Body::Uniform(0))
    }

    /// The state of block `at`, and how many blocks of `at..end` have it without a gap.
    pub(super) fn run(&self, at: u64, end: u64) -> (u8, u64) {
        let words = match &self.body {
            Body::Uniform(state) => return (*state, end - at),
            Body::Mixed(words) => words,
        };
        let (at, end) = (at as usize, end as usize);
        let state = (words[at / PER_WORD] >> (2 * (at % PER_WORD)) & 3) as u8;
        let other = self.search(at, end, 0b1111 & !(1 << state));
        (state, (other.unwrap_or(end) - at) as u64)
    }

    /// The first block of `at..end` in one of `states`.
    pub(super) fn find(&self, at: u64, end: u64, states: u8) -> Option<u64> {
        self.search(at as usize, end as usize, states).map(|found| found as u64)
    }

    fn search(&self, at: usize, end: usize, states: u8) -> Option<usize> {
        let words = match &self.body {
            Body::Uniform(state) => return (states & (1 << state) != 0).then_some(at),
            Body::Mixed(words) => words,
        };
        let mut from = at;
        while from < end {
            let word = from / PER_WORD;
            let base = word * PER_WORD;
            let found = among(words[word], states) & span(from - base, end - base);
            if found != 0 {
                return Some(base + found.trailing_zeros() as usize / 2);
            }
            from = base + PER_WORD;
        }
        None
    }

    /// Whether [`Chunk::set`] with these arguments would have to make a mixed chunk of a uniform
    /// one.
    pub(super) fn would_split(&self, at: u64, end: u64, states: u8, to: u8) -> bool {
        match self.body {
            Body::Uniform(state) => states & (1 << state) != 0 && state != to && end - at < CHUNK_BLOCKS,
            Body::Mixed(_) => false,
        }
    }

    /// Sets those blocks of `at..end` that are in one of `states` to `to`. Answers how many they
    /// were, and adds to `deltas` how the numbers of blocks have changed.
    pub(super) fn set(&mut self, at: u64, end: u64, states: u8, to: u8, deltas: &mut StateDeltas) -> u64 {
        let into = usize::from(to & 3);
        if let Body::Uniform(state) = self.body {
            if states & (1 << state) == 0 {
                return 0;
            }
            if state == to {
                return end - at;
            }
            if end - at < CHUNK_BLOCKS {
                self.body = Body::Mixed(Box::new([all(state); WORDS]));
            } else {
                deltas[usize::from(state)] -= CHUNK_BLOCKS as i64;
                deltas[into] += CHUNK_BLOCKS as i64;
                *self = Chunk::uniform(to);
                return CHUNK_BLOCKS;
            }
        }
        let Body::Mixed(words) = &mut self.body else { return 0 };
        let mut set = 0;
        let (mut from, end) = (at as usize, end as usize);
        while from < end {
            let base = from / PER_WORD * PER_WORD;
            let word = &mut words[from / PER_WORD];
            let mask = span(from - base, end - base);
            let chosen = among(*word, states) & mask;
            for state in 0..4u8 {
                let n = (among(*word, 1 << state) & chosen).count_ones();
                self.counts[usize::from(state)] -= n as u16;
                self.counts[into] += n as u16;
                deltas[usize::from(state)] -= i64::from(n);
                deltas[into] += i64::from(n);
                set += u64::from(n);
            }
            *word = (*word & !(chosen * 3)) | (chosen * u64::from(to & 3));
            from = base + PER_WORD;
        }
        if let Some(state) = self.counts.iter().position(|count| u64::from(*count) == CHUNK_BLOCKS) {
            self.body = Body::Uniform(state as u8);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_splits_and_joins() {
        let mut chunk = Chunk::uniform(0);
        let mut deltas = [0; 4];
        assert_eq!(chunk.set(31, 34, 0b0001, 2, &mut deltas), 3);
        assert_eq!(
            (chunk.run(0, CHUNK_BLOCKS), chunk.run(31, CHUNK_BLOCKS), chunk.run(34, CHUNK_BLOCKS)),
            ((0, 31), (2, 3), (0, 2014))
        );
        assert_eq!(chunk.run(32, 33), (2, 1));
        assert_eq!((chunk.find(0, CHUNK_BLOCKS, 0b0100), chunk.find(34, CHUNK_BLOCKS, 0b1110)), (Some(31), None));
        assert!(chunk.is_mixed());
        assert_eq!(chunk.set(0, CHUNK_BLOCKS, 0b0001, 2, &mut deltas), 2045);
        assert!(!chunk.is_mixed());
        assert_eq!(deltas, [-2048, 0, 2048, 0]);
        assert!(chunk.would_split(0, 1, 0b1111, 0) && !chunk.would_split(0, 1, 0b1011, 0));
        assert_eq!(chunk.set(0, CHUNK_BLOCKS, 0b1111, 0, &mut deltas), 2048);
        assert!(chunk.is_blank());
        assert_eq!(deltas, [0; 4]);
    }

    #[test]
    fn the_edges_of_words_are_not_lost() {
        for (from, to) in [(0, 32), (0, 1), (31, 32), (5, 5), (0, 40)] {
            assert_eq!(span(from, to).count_ones() as usize, to.min(32) - from, "{from}..{to}");
        }
        assert_eq!(all(3), u64::MAX);
        assert_eq!(among(u64::MAX, 0b1000), LOW);
        assert_eq!(among(0, 0b0001), LOW);
    }
}
