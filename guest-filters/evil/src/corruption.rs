//! Which bits of a read are wrong.
//!
//! If they are rare, the gaps between them are drawn, so that a read without a wrong bit costs next
//! to nothing. If they are frequent, from one bit in 64 on, each word of 64 bits is drawn.
//!
//! * **cosmic-rays**: each read has random numbers of its own.
//! * **stuck-bits**: the disk is divided into blocks, and each block has random numbers of its own.
//!   They say which of its bits are stuck, and how. So every read finds the same bits, and nothing
//!   has to be remembered.
//! * **stuck-wires**: as stuck-bits of a disk that begins with each read.

use crate::chance::{Digits, Gaps, Random};

/// From this chance on wrong bits are frequent.
const FREQUENT: f64 = 1.0 / 64.0;

/// How bits go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Any bit of a read is flipped.
    CosmicRays,
    /// Some bits of the disk always read as 0 or as 1.
    StuckBits,
    /// Some bits of each read always read as 0 or as 1.
    StuckWires,
}

/// What happens to one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Flip,
    Low,
    High,
}

impl Effect {
    /// Applies it to bit 0 to 7 of a byte.
    pub fn apply(self, byte: &mut u8, bit: u32) {
        let mask = 1 << bit;
        match self {
            Effect::Flip => *byte ^= mask,
            Effect::Low => *byte &= !mask,
            Effect::High => *byte |= mask,
        }
    }
}

/// A wrong bit: the position of its byte within the read, the bit from 0 to 7, and the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub at: u64,
    pub bit: u32,
    pub effect: Effect,
}

/// The streams of random numbers of a seed: those of blocks and words of the disk have the numbers
/// from 0 on.
const READ_STREAM: u64 = 1 << 63;

/// What is wrong with a disk.
#[derive(Clone, Debug)]
pub struct Corruption {
    mode: Mode,
    chance: f64,
    gaps: Gaps,
    digits: Digits,
    /// The chance that a stuck bit is stuck in one read.
    stuck: f64,
    stuck_digits: Digits,
    /// The length of a block in bytes. A power of two.
    block: u64,
}

impl Corruption {
    /// `chance` is the chance of each bit to be wrong, and as `limit_chance` returns it. `stuck` is
    /// the chance that a stuck bit is stuck in one read.
    pub fn new(mode: Mode, chance: f64, stuck: f64) -> Corruption {
        // About 64 wrong bits in a block: to find those at its end the ones before have to be
        // drawn.
        let bytes = (64.0 / 8.0 / chance).clamp(64.0, (1u64 << 20) as f64) as u64;
        let (gaps, digits, stuck_digits) = (Gaps::new(chance), Digits::new(chance), Digits::new(stuck));
        Corruption { mode, chance, gaps, digits, stuck, stuck_digits, block: bytes.next_power_of_two() }
    }

    /// Whether wrong bits are frequent.
    pub fn is_frequent(&self) -> bool {
        self.chance >= FREQUENT
    }

    /// Whether two reads of the same bytes may differ.
    pub fn varies(&self) -> bool {
        self.mode == Mode::CosmicRays || self.stuck < 1.0
    }

    /// The wrong bits of a read, in ascending order, if they are rare. `read` is the number of the
    /// read.
    pub fn of_read(&self, seed: u64, read: u64, offset: u64, length: u64) -> impl Iterator<Item = Wrong> + '_ {
        // Where the block that is drawn begins, relative to the read, in bits. It may begin before
        // it.
        let (first_block, block_bits) = match self.mode {
            Mode::StuckBits => (offset / self.block, self.block * 8),
            Mode::CosmicRays | Mode::StuckWires => (0, u64::MAX),
        };
        let skip = if self.mode == Mode::StuckBits { offset % self.block * 8 } else { 0 };
        let mut of_read = Random::new(seed, READ_STREAM | read);
        let mut block = first_block;
        let mut fixed = Random::new(seed, block);
        // Both count bits from the beginning of the first block.
        let mut block_start = 0;
        let mut at: u64 = 0;
        let end = skip + length * 8;
        std::iter::from_fn(move || {
            loop {
                let source = if self.mode == Mode::CosmicRays { &mut of_read } else { &mut fixed };
                at = at.saturating_add(self.gaps.next(source));
                if at - block_start >= block_bits {
                    block += 1;
                    block_start += block_bits;
                    at = block_start;
                    if at >= end {
                        return None;
                    }
                    fixed = Random::new(seed, block);
                    continue;
                }
                if at >= end {
                    return None;
                }
                let effect = match self.mode {
                    Mode::CosmicRays => Effect::Flip,
                    _ if fixed.next() & 1 == 0 => Effect::Low,
                    _ => Effect::High,
                };
                let position = at;
                at += 1;
                let counts = self.mode == Mode::CosmicRays || self.stuck >= 1.0 || of_read.happens(self.stuck);
                if position >= skip && counts {
                    let from = position - skip;
                    return Some(Wrong { at: from / 8, bit: (from % 8) as u32, effect });
                }
            }
        })
    }

    /// Makes bits of a piece of a read wrong, if they are frequent. `read` is the number of the
    /// read, and `at` the piece's position within it.
    pub fn corrupt(&self, seed: u64, read: u64, offset: u64, at: u64, bytes: &mut [u8]) {
        let start = if self.mode == Mode::StuckBits { offset + at } else { at };
        let skip = (start % 8) as usize;
        let mut index = start / 8;
        let mut rest = bytes;
        let mut from = skip;
        while !rest.is_empty() {
            let (word, behind) = rest.split_at_mut((8 - from).min(rest.len()));
            let (mask, value) = self.word(seed, read, index);
            for (byte, (mask, value)) in word.iter_mut().zip(mask.iter().zip(value).skip(from)) {
                *byte = match self.mode {
                    Mode::CosmicRays => *byte ^ mask,
                    Mode::StuckBits | Mode::StuckWires => *byte & !mask | value & mask,
                };
            }
            (rest, index, from) = (behind, index + 1, 0);
        }
    }

    /// Which bits of a word are wrong, and what they are stuck at.
    fn word(&self, seed: u64, read: u64, index: u64) -> ([u8; 8], [u8; 8]) {
        let read_stream = || Random::new(seed ^ index, READ_STREAM | read);
        let (mask, value) = match self.mode {
            Mode::CosmicRays => (read_stream().bits(self.digits), 0),
            Mode::StuckBits | Mode::StuckWires => {
                let mut random = Random::new(seed, index);
                let value = random.next();
                let mask = random.bits(self.digits);
                let varies = self.stuck < 1.0 && mask != 0;
                let now = if varies { mask & read_stream().bits(self.stuck_digits) } else { mask };
                (now, value)
            }
        };
        (mask.to_le_bytes(), value.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::limit_chance;

    fn corruption(mode: Mode, chance: f64, stuck: f64) -> Corruption {
        Corruption::new(mode, limit_chance(chance), stuck)
    }

    /// Corrupts a read of zeroes or ones, and counts the bits that became wrong or are stuck.
    fn corrupt(corruption: &Corruption, read: u64, offset: u64, bytes: &mut [u8]) -> usize {
        if corruption.is_frequent() {
            let middle = bytes.len() / 2;
            let (first, second) = bytes.split_at_mut(middle);
            corruption.corrupt(7, read, offset, 0, first);
            corruption.corrupt(7, read, offset, middle as u64, second);
            return bytes.iter().map(|byte| byte.count_ones() as usize).sum();
        }
        let wrong: Vec<Wrong> = corruption.of_read(7, read, offset, bytes.len() as u64).collect();
        assert!(wrong.windows(2).all(|pair| (pair[0].at, pair[0].bit) < (pair[1].at, pair[1].bit)));
        for wrong in &wrong {
            wrong.effect.apply(&mut bytes[wrong.at as usize], wrong.bit);
        }
        wrong.len()
    }

    #[test]
    fn as_many_bits_are_wrong_as_the_chance_says() {
        for mode in [Mode::CosmicRays, Mode::StuckBits, Mode::StuckWires] {
            for chance in [0.125, 0.05, 0.016, 0.015, 1e-3, 1e-5] {
                let mut bytes = vec![0; 4 << 20];
                corrupt(&corruption(mode, chance, 1.0), 1, 12345, &mut bytes);
                let wrong: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
                // Of the stuck bits half are stuck at 1, which is wrong here.
                let part = if mode == Mode::CosmicRays { 8.0 } else { 4.0 };
                let (wrong, expected) = (f64::from(wrong), chance * part * bytes.len() as f64);
                let most = 6.0 * expected.sqrt() + expected / 128.0;
                assert!((wrong - expected).abs() < most, "{mode:?} {chance}: {wrong}, not {expected}");
            }
            assert_eq!(corrupt(&corruption(mode, 1e-13, 1.0), 1, 0, &mut [0; 1000]), 0);
        }
    }

    #[test]
    fn stuck_bits_are_the_same_in_every_read_however_it_is_cut() {
        let corruption = corruption(Mode::StuckBits, 0.003, 1.0);
        let whole = |byte| {
            let mut bytes = vec![byte; 300_000];
            corrupt(&corruption, 1, 0, &mut bytes);
            bytes
        };
        for byte in [0, 255] {
            let whole = whole(byte);
            for (read, (offset, length)) in [(0, 1), (1000, 999), (4095, 100_000), (65_536, 65_536)].iter().enumerate()
            {
                let mut bytes = vec![byte; *length];
                corrupt(&corruption, read as u64, *offset as u64, &mut bytes);
                assert_eq!(bytes, whole[*offset..offset + length], "{offset} {length}");
            }
        }
        let differ = whole(0).iter().zip(whole(255)).map(|(a, b)| (a ^ b ^ 255).count_ones()).sum::<u32>();
        assert!((5000..10_000).contains(&differ), "{differ} bits are stuck, of them some at 0 and some at 1");
        let high: u32 = whole(0).iter().map(|byte| byte.count_ones()).sum();
        assert!((differ / 3..differ).contains(&high), "{high} of {differ} bits are stuck at 1");
    }

    #[test]
    fn stuck_wires_are_at_the_same_place_of_every_read_and_cosmic_rays_are_not() {
        let read = |mode, chance, read, offset| {
            let mut bytes = vec![0; 10_000];
            corrupt(&corruption(mode, chance, 1.0), read, offset, &mut bytes);
            bytes
        };
        for chance in [0.03, 0.0009] {
            assert_eq!(read(Mode::StuckWires, chance, 1, 0), read(Mode::StuckWires, chance, 2, 777));
            assert_ne!(read(Mode::StuckBits, chance, 1, 0), read(Mode::StuckBits, chance, 2, 777));
            assert_ne!(read(Mode::CosmicRays, chance, 1, 0), read(Mode::CosmicRays, chance, 2, 0));
            assert_eq!(read(Mode::CosmicRays, chance, 1, 0), read(Mode::CosmicRays, chance, 1, 777));
        }
    }

    #[test]
    fn a_stuck_bit_may_be_right_in_some_reads() {
        for (chance, part) in [(0.03, 0.25), (0.0009, 0.5)] {
            let corruption = corruption(Mode::StuckBits, chance, 0.5);
            assert!(corruption.varies());
            let counts: Vec<usize> = (0..20).map(|read| corrupt(&corruption, read, 0, &mut vec![0; 1 << 17])).collect();
            let expected = chance * part * f64::from(8 << 17);
            assert!(counts.iter().all(|count| (*count as f64 / expected - 1.0).abs() < 0.3), "{expected}: {counts:?}");
            assert!(counts.windows(2).any(|pair| pair[0] != pair[1]), "{counts:?}");
        }
    }

    #[test]
    fn all_bits_may_be_wrong() {
        let all = |mode, stuck, at: usize, length| {
            let mut bytes = vec![0x0f; length];
            corruption(mode, 0.5, stuck).corrupt(7, 3, 100, at as u64, &mut bytes);
            bytes
        };
        assert_eq!(all(Mode::CosmicRays, 1.0, 0, 3), [0xf0; 3]);
        for mode in [Mode::StuckBits, Mode::StuckWires] {
            let whole = all(mode, 1.0, 0, 1000);
            assert_eq!(all(mode, 1.0, 300, 700), whole[300..]);
            let ones: u32 = whole.iter().map(|byte| byte.count_ones()).sum();
            assert!((3700..4300).contains(&ones), "{ones}");
            assert_eq!(all(mode, 0.0, 0, 1000), [0x0f; 1000]);
        }
    }
}
