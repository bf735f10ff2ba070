//! The random numbers of nbdkit's test disks: xoshiro256** of Blackman and Vigna, whose state is
//! filled by splitmix64.
//!
//! Both are public algorithms (prng.di.unimi.it). With the same numbers, a disk has the same bytes
//! for a seed as nbdkit's. They are not fit for secrets.

/// A source of 64-bit numbers.
#[derive(Clone, Debug)]
pub struct Generator([u64; 4]);

impl Generator {
    /// The generator whose numbers follow from `seed`.
    #[inline]
    pub fn new(seed: u64) -> Generator {
        let mut seed = seed;
        Generator([(); 4].map(|()| split_mix(&mut seed)))
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.0;
        let answer = s1.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= shifted;
        *s3 = s3.rotate_left(45);
        answer
    }
}

/// The next number of splitmix64, whose whole state is `state`.
#[inline]
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut number = *state;
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_algorithms() {
        // The test vector of splitmix64 for the seed 1234567.
        let mut state = 1_234_567;
        let numbers = [(); 3].map(|()| split_mix(&mut state));
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        // That of xoshiro256** for the state 1, 2, 3, 4.
        let mut generator = Generator([1, 2, 3, 4]);
        let numbers = [(); 5].map(|()| generator.next_u64());
        assert_eq!(numbers, [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240, 1_216_172_134_540_287_360]);
    }
}
