//! Random numbers for tests (xorshift64*). The seed is printed, so that a failure can be run again.

pub(super) struct Random(u64);

impl Random {
    /// Takes the seed from `RBDKIT_TEST_SEED` if it is set, otherwise from the time. Prints the
    /// seed.
    pub(super) fn seeded(test: &str) -> Random {
        let seed = std::env::var("RBDKIT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64
        });
        println!("{test}: RBDKIT_TEST_SEED={seed}");
        Random::new(seed)
    }

    pub(super) fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
    }
}
