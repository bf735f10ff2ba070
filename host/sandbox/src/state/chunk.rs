//! A chunk of a map: 2048 blocks of two bits each, or one state for all of them.
//!
//! Everything works on words of 32 blocks: which of them have a state is a handful of bit operations, and the answer is a mask with one bit for
//! each block at its lower bit ([`LOW`]).

/// Blocks in a chunk.
pub(super) const BLOCKS: u64 = 2048;
/// Blocks in a word.
const PER_WORD: usize = 32;
const WORDS: usize = BLOCKS as usize / PER_WORD;
/// The lower bit of each block's two.
const LOW: u64 = 0x5555_5555_5555_5555;

/// How many blocks came to have each state, or ceased to.
pub(super) type Deltas = [i64; 4];

enum Body {
    Uniform(u8),
    Mixed(Box<[u64; WORDS]>),
}

pub(super) struct Chunk {
    /// How many blocks have each state; they add up to [`BLOCKS`].
    counts: [u16; 4],
    body: Body,
}

/// Every block of a word in `state`.
fn all(state: u8) -> u64 {
    u64::from(state & 3) * LOW
}

/// Which blocks of `word` are in one of `states` (bit n: state n).
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

/// The blocks `from..to` of a word.
fn span(from: usize, to: usize) -> u64 {
    let below = |n: usize| if n >= PER_WORD { u64::MAX } else { (1u64 << (2 * n)) - 1 };
    below(to) & !below(from) & LOW
}

impl Chunk {
    pub(super) fn uniform(state: u8) -> Chunk {
        let mut counts = [0; 4];
        counts[usize::from(state & 3)] = BLOCKS as u16;
        Chunk { counts, body: Body::Uniform(state & 3) }
    }

    /// Whether it takes memory for single blocks.
    pub(super) fn is_mixed(&self) -> bool {
        matches!(self.body, Body::Mixed(_))
    }

    /// Whether every block has state 0, as if the chunk were not there.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self.body, Body::Uniform(0))
    }

    /// The state of block `at` and how many from there on, at most to `end`, have the same.
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

    /// Whether [`Chunk::set`] with these would have to make a mixed chunk of a uniform one.
    pub(super) fn would_split(&self, at: u64, end: u64, states: u8, to: u8) -> bool {
        match self.body {
            Body::Uniform(state) => states & (1 << state) != 0 && state != to && end - at < BLOCKS,
            Body::Mixed(_) => false,
        }
    }

    /// Sets those of `at..end` that are in one of `states` to `to`; how many they were. Adds to `deltas` what has changed.
    pub(super) fn set(&mut self, at: u64, end: u64, states: u8, to: u8, deltas: &mut Deltas) -> u64 {
        let into = usize::from(to & 3);
        if let Body::Uniform(state) = self.body {
            if states & (1 << state) == 0 {
                return 0;
            }
            if state == to {
                return end - at;
            }
            if end - at < BLOCKS {
                self.body = Body::Mixed(Box::new([all(state); WORDS]));
            } else {
                deltas[usize::from(state)] -= BLOCKS as i64;
                deltas[into] += BLOCKS as i64;
                *self = Chunk::uniform(to);
                return BLOCKS;
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
        if let Some(state) = self.counts.iter().position(|count| u64::from(*count) == BLOCKS) {
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
        assert_eq!((chunk.run(0, BLOCKS), chunk.run(31, BLOCKS), chunk.run(34, BLOCKS)), ((0, 31), (2, 3), (0, 2014)));
        assert_eq!(chunk.run(32, 33), (2, 1));
        assert_eq!((chunk.find(0, BLOCKS, 0b0100), chunk.find(34, BLOCKS, 0b1110)), (Some(31), None));
        assert!(chunk.is_mixed());
        assert_eq!(chunk.set(0, BLOCKS, 0b0001, 2, &mut deltas), 2045);
        assert!(!chunk.is_mixed());
        assert_eq!(deltas, [-2048, 0, 2048, 0]);
        assert!(chunk.would_split(0, 1, 0b1111, 0) && !chunk.would_split(0, 1, 0b1011, 0));
        assert_eq!(chunk.set(0, BLOCKS, 0b1111, 0, &mut deltas), 2048);
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
