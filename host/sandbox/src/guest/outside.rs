//! What a guest learns of the world by itself: the time, and random numbers.
//!
//! While a component is asked what it is, both are made up, and the same each time: a clock that goes on by a millisecond whenever somebody looks at it, and
//! numbers that only look random. So it cannot say one thing to who inspects it and another, later or by chance, to who serves it. It is
//! enough for the runtimes of languages, which seed their tables and wait for their own clocks before anything else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmtime::{Error, Result};

use crate::load::entropy;

/// Where a guest's time and random numbers come from.
#[derive(Debug)]
pub(crate) enum Outside {
    /// The system.
    Real,
    /// Made up: how often it was asked.
    MadeUp(u64),
}

/// The time of day at which every made-up day begins: the first of January of 2020, in seconds since 1970.
const DAWN: u64 = 1_577_836_800;

/// By so many nanoseconds a made-up clock goes on.
const STEP: u64 = 1_000_000;

impl Outside {
    /// Nanoseconds since the server started; `real` asks for those.
    pub(crate) fn monotonic(&mut self, real: impl FnOnce() -> u64) -> u64 {
        match self {
            Outside::Real => real(),
            Outside::MadeUp(asked) => {
                *asked = asked.wrapping_add(1);
                asked.saturating_mul(STEP)
            }
        }
    }

    /// Since 1970.
    pub(crate) fn realtime(&mut self) -> Duration {
        match self {
            Outside::Real => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Outside::MadeUp(_) => Duration::from_secs(DAWN) + Duration::from_nanos(self.monotonic(|| 0)),
        }
    }

    /// Fills `bytes` with random ones.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self {
            Outside::Real if entropy::fill(bytes) => {}
            Outside::Real => return Err(Error::msg(entropy::NONE)),
            Outside::MadeUp(asked) => {
                for chunk in bytes.chunks_mut(8) {
                    *asked = asked.wrapping_add(1);
                    chunk.copy_from_slice(&mixed(*asked).to_le_bytes()[..chunk.len()]);
                }
            }
        }
        Ok(())
    }

    /// 64 random bits.
    pub(crate) fn word(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The numbers of splitmix64, by their places.
fn mixed(nth: u64) -> u64 {
    let z = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_up_is_the_same_each_time_and_goes_on() {
        let mut told = (0..2).map(|_| {
            let mut outside = Outside::MadeUp(0);
            let mut bytes = [0; 20];
            outside.fill(&mut bytes).unwrap();
            let words = [outside.word().unwrap(), outside.word().unwrap()];
            assert!(words[0] != words[1] && bytes[16..] != [0; 4]);
            let (one, two) = (outside.realtime(), outside.realtime());
            assert!(one < two && outside.monotonic(|| 0) > 0);
            (bytes, words, one)
        });
        assert_eq!(told.next(), told.next());
    }
}
