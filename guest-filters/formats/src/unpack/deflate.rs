//! Deflated data (RFC 1951), decoded from its start or from a border between two of its blocks.

use rbdkit_filter_sdk::image::{Error, Source, read};

use super::Input;
use crate::zlib::{Deflated, InflateState, Outcome, Until, WINDOW};

/// Why decoding stopped.
#[derive(Debug)]
pub enum InflateFault {
    /// The source failed.
    Source(Error),
    /// The source ends at this offset, and the data does not.
    Cut(u64),
    /// The data around this offset of the source is wrong.
    Wrong(u64),
}

/// The state of decoding.
pub struct Inflater {
    state: InflateState,
    ended: bool,
}

impl Default for Inflater {
    /// Decodes from the start of deflated data.
    fn default() -> Inflater {
        Inflater { state: InflateState::new(Deflated::Raw), ended: false }
    }
}

impl Inflater {
    /// Decodes from a border on, which is at bit number `bits` of the source. `window` is what
    /// [`border`](Inflater::border) gave there. The input has to begin at the next whole byte.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_border(source: &dyn Source, bits: u64, window: &[u8]) -> Result<Inflater, Error> {
        let state = match (bits.wrapping_neg() % 8) as u8 {
            0 => InflateState::resume(0, 0, window),
            num_bits => InflateState::resume(num_bits, read(source, bits / 8, 1)?[0], window),
        };
        Ok(Inflater { state, ended: false })
    }

    /// Decodes from the start of other data, in the same memory.
    pub fn restart(&mut self) {
        self.state.reset();
        self.ended = false;
    }

    /// Decodes into `out` and returns how many bytes that gave. 0 means that the data has ended,
    /// if `out` is not empty.
    ///
    /// # Errors
    /// As [`InflateFault`] has them.
    pub fn read(&mut self, input: &mut Input, out: &mut [u8]) -> Result<usize, InflateFault> {
        while !self.ended && !out.is_empty() {
            let at = input.at();
            let there = input.available().map_err(InflateFault::Source)?;
            let is_end = there.is_empty();
            let step = self.state.step(there, out, Until::Block);
            input.consume(step.taken);
            match step.outcome {
                Outcome::Wrong => return Err(InflateFault::Wrong(at + step.taken as u64)),
                Outcome::Paused if is_end && step.given == 0 => return Err(InflateFault::Cut(at)),
                Outcome::Paused => {}
                Outcome::Ended => self.ended = true,
            }
            if step.given > 0 {
                return Ok(step.given);
            }
        }
        Ok(0)
    }

    /// If the last byte that `read` returned is the last of a block: the number of the bit of the
    /// source that comes next, and the bytes before it that the decoder needs.
    pub fn border(&self, input: &Input) -> Option<(u64, Vec<u8>)> {
        let bits = self.state.boundary()?;
        let decoded = self.state.window();
        // A window has one length. Nothing refers to what is before the first byte.
        let mut window = vec![0; WINDOW - decoded.len()];
        window.extend(decoded);
        Some((input.at() * 8 - u64::from(bits), window))
    }
}
