//! Chances, and random numbers that a seed repeats.

/// The smallest chance that counts. A smaller one is 0.
const SMALLEST: f64 = 1e-12;

/// The largest chance that counts. A larger one is 1.
const LARGEST: f64 = 1.0 / 8.0;

/// A chance as the user writes it: a number from 0 to 1, `N:M` or `N%`.
///
/// # Errors
/// What is wrong, as the end of a message.
pub fn parse_chance(text: &str) -> Result<f64, String> {
    let wrong = || "is not a chance: a number from 0 to 1 (1e-6), a ratio (1:1000000) or a percentage (1%)".to_string();
    let number = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
        text.parse::<f64>().ok().filter(|n| plain && n.is_finite() && *n >= 0.0).ok_or_else(wrong)
    };
    let chance = match (text.strip_suffix('%'), text.split_once(':')) {
        (Some(percent), _) => number(percent)? / 100.0,
        (None, Some((hits, tries))) => number(hits)? / number(tries)?,
        (None, None) => number(text)?,
    };
    match chance {
        _ if chance.is_nan() => Err(wrong()),
        _ if chance > 1.0 => Err("is a chance of more than 1".into()),
        _ => Ok(chance),
    }
}

/// The chance that counts instead of the one that was given.
pub fn limit_chance(chance: f64) -> f64 {
    if chance < SMALLEST {
        0.0
    } else if chance > LARGEST {
        1.0
    } else {
        chance
    }
}

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed. Each `stream` of it has numbers of its own.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed);
        let first = random.next();
        Random(first ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True with this chance.
    pub fn happens(&mut self, chance: f64) -> bool {
        ((self.next() >> 11) as f64) < chance * (1u64 << 53) as f64
    }

    /// 64 bits, each of which is set with the chance of these digits.
    pub fn bits(&mut self, digits: Digits) -> u64 {
        if digits.0 == 1 << 32 {
            return u64::MAX;
        }
        // From the last digit to the first. Each digit halves what came before it, and adds a half
        // if it is 1. So zeroes at the end do nothing.
        let mut bits = 0;
        for digit in digits.0.trailing_zeros()..32 {
            if bits == 0 && digits.0 >> digit == 0 {
                return 0;
            }
            let random = self.next();
            bits = if digits.0 >> digit & 1 == 1 { bits | random } else { bits & random };
        }
        bits
    }
}

/// The binary digits of a chance, in parts of 2^32: the first eight that are not leading zeroes.
/// Each digit costs a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits(u64);

impl Digits {
    /// The digits of a chance from 0 to 1.
    pub fn new(chance: f64) -> Digits {
        let parts = (chance * (1u64 << 32) as f64) as u64;
        let unused = (64 - parts.leading_zeros()).saturating_sub(8);
        Digits(parts >> unused << unused)
    }
}

/// How far events that happen with a chance at each step are apart.
#[derive(Clone, Debug)]
pub struct Gaps {
    /// ln(1 - chance).
    ln_miss: f64,
}

impl Gaps {
    /// `chance` is less than 1.
    pub fn new(chance: f64) -> Gaps {
        Gaps { ln_miss: (-chance).ln_1p() }
    }

    /// The number of steps without an event before the next one. With a chance of 0 it is
    /// `u64::MAX`.
    pub fn next(&self, random: &mut Random) -> u64 {
        if self.ln_miss == 0.0 {
            return u64::MAX;
        }
        // From 2^-53 to 1, so the logarithm is finite.
        let number = ((random.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (number.ln() / self.ln_miss) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_numbers_ratios_or_percentages() {
        for (text, chance) in [("0", 0.0), ("0.001", 1e-3), ("1e-6", 1e-6), ("1:4", 0.25), ("3.5:7", 0.5), ("1%", 0.01)]
        {
            assert_eq!(parse_chance(text), Ok(chance), "{text}");
        }
        for text in ["", "x", "-1", "1:0", "0:0", "nan", "inf", "1:", "%", "1.1", "101%", "2:1"] {
            assert!(parse_chance(text).is_err(), "{text}");
        }
    }

    #[test]
    fn chances_outside_of_the_range_are_0_or_1() {
        assert_eq!([1e-13, 1e-12, 0.125, 0.126].map(limit_chance), [0.0, 1e-12, 0.125, 1.0]);
    }

    #[test]
    fn gaps_have_the_mean_of_their_chance() {
        for chance in [0.01, 1.0 / 1024.0, 1e-4, 1e-8, 1e-12] {
            let (gaps, mut random) = (Gaps::new(chance), Random::new(1, 2));
            let sum: f64 = (0..20_000).map(|_| gaps.next(&mut random) as f64).sum();
            let (mean, expected) = (sum / 20_000.0, (1.0 - chance) / chance);
            assert!((mean / expected - 1.0).abs() < 0.05, "{chance}: {mean} instead of {expected}");
        }
        assert_eq!(Gaps::new(0.0).next(&mut Random::new(1, 2)), u64::MAX);
    }

    #[test]
    fn a_seed_repeats_its_numbers_and_streams_differ() {
        let numbers = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.next(), random.next()]
        };
        assert_eq!(numbers(5, 6), numbers(5, 6));
        assert_ne!(numbers(5, 6), numbers(5, 7));
        assert_ne!(numbers(5, 6), numbers(6, 6));
    }

    #[test]
    fn bits_are_set_with_their_chance() {
        for chance in [0.0, 0.001, 0.125, 0.3, 0.5, 0.9, 1.0] {
            let (mut random, digits) = (Random::new(3, 3), Digits::new(chance));
            let set: u32 = (0..100_000).map(|_| random.bits(digits).count_ones()).sum();
            let wanted = chance * 6_400_000.0;
            assert!((f64::from(set) - wanted).abs() <= wanted * 0.03, "{chance}: {set}");
            let set = (0..100_000).filter(|_| random.happens(chance)).count();
            assert!((set as f64 / 100_000.0 - chance).abs() < 0.01, "{chance}: {set}");
        }
    }
}
