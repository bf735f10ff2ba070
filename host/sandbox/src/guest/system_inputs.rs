//! The time and the random numbers that a guest gets from the system.
//!
//! While a component describes itself, both are simulated and the same each time: each reading of
//! the clock is a millisecond later, and the random numbers come from a fixed sequence. So a
//! component cannot describe itself in one way to `rbdkit-filter inspect` and in another way, later
//! or by chance, to the server. The simulation is enough for language runtimes, which seed their
//! hash tables and read the clock when they start.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmtime::{Error, Result};

/// Where a guest's time and random numbers come from.
#[derive(Debug)]
pub(crate) enum SystemInputs {
    /// The system.
    Real,
    /// Simulated, with a count of the guest's readings.
    Simulated(u64),
}

/// The time of day at which the simulated clock starts: the first of January of 2020, in seconds
/// since 1970.
const SIMULATED_START: u64 = 1_577_836_800;

/// By how many nanoseconds the simulated clock advances at each reading.
const SIMULATED_TICK: u64 = 1_000_000;

impl SystemInputs {
    /// Nanoseconds since the server started. `real` asks the system for them.
    pub(crate) fn monotonic(&mut self, real: impl FnOnce() -> u64) -> u64 {
        match self {
            SystemInputs::Real => real(),
            SystemInputs::Simulated(asked) => {
                *asked = asked.wrapping_add(1);
                asked.saturating_mul(SIMULATED_TICK)
            }
        }
    }

    /// The time since 1970 in UTC.
    pub(crate) fn realtime(&mut self) -> Duration {
        match self {
            SystemInputs::Real => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            SystemInputs::Simulated(_) => {
                Duration::from_secs(SIMULATED_START) + Duration::from_nanos(self.monotonic(|| 0))
            }
        }
    }

    /// Fills `bytes` with random bytes.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self {
            SystemInputs::Real => {
                getrandom::fill(bytes).map_err(|_| Error::msg("the operating system gave no random numbers"))?;
            }
            SystemInputs::Simulated(asked) => {
                for chunk in bytes.chunks_mut(8) {
                    *asked = asked.wrapping_add(1);
                    chunk.copy_from_slice(&splitmix64(*asked).to_le_bytes()[..chunk.len()]);
                }
            }
        }
        Ok(())
    }

    /// 64 random bits.
    ///
    /// # Errors
    /// Those of [`SystemInputs::fill`].
    pub(crate) fn word(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The `nth` number of splitmix64.
fn splitmix64(nth: u64) -> u64 {
    let z = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_inputs_are_the_same_each_time_and_go_on() {
        let mut told = (0..2).map(|_| {
            let mut inputs = SystemInputs::Simulated(0);
            let mut bytes = [0; 20];
            inputs.fill(&mut bytes).unwrap();
            let words = [inputs.word().unwrap(), inputs.word().unwrap()];
            assert!(words[0] != words[1] && bytes[16..] != [0; 4]);
            let (one, two) = (inputs.realtime(), inputs.realtime());
            assert!(one < two && inputs.monotonic(|| 0) > 0);
            (bytes, words, one)
        });
        assert_eq!(told.next(), told.next());
    }

    #[test]
    fn every_byte_is_filled() {
        // One of so many words stays zero by chance once in ten million years of testing.
        let mut bytes = vec![0; 10_000];
        SystemInputs::Real.fill(&mut bytes).unwrap();
        assert!(bytes.chunks_exact(8).all(|word| word != [0; 8]));
    }
}
