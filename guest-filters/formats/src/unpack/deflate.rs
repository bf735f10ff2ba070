//! Deflated data (RFC 1951), decoded from its start or from a border between two of its blocks.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};
use rbdkit_filter_sdk::image::{Error, Source, read};

use super::Input;

/// The output of the decoder, a power of two. The last 32 KiB of it are the window.
const RING: usize = 256 << 10;
/// How far back deflated data may refer, in bytes.
pub const DEFLATE_WINDOW: usize = 32 << 10;

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
    state: Box<DecompressorOxide>,
    ring: Vec<u8>,
    /// Where in the ring the next output goes.
    end: usize,
    /// How many bytes before `end` were not returned.
    pending: usize,
    status: TINFLStatus,
}

impl Default for Inflater {
    /// Decodes from the start of deflated data.
    fn default() -> Inflater {
        Inflater { state: Box::default(), ring: vec![0; RING], end: 0, pending: 0, status: TINFLStatus::NeedsMoreInput }
    }
}

impl Inflater {
    /// Decodes from a border on, which is at bit number `bits` of the source. `window` is what
    /// [`border`](Inflater::border) gave there. The input has to begin at the next whole byte.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_border(source: &dyn Source, bits: u64, window: &[u8]) -> Result<Inflater, Error> {
        let mut inflater = Inflater::default();
        let mut state = BlockBoundaryState::default();
        let num_bits = (bits.wrapping_neg() % 8) as u8;
        if num_bits > 0 {
            let before = read(source, bits / 8, 1)?[0];
            (state.num_bits, state.bit_buf) = (num_bits, before >> (8 - num_bits));
        }
        *inflater.state = DecompressorOxide::from_block_boundary_state(&state);
        let at = RING - window.len().min(DEFLATE_WINDOW);
        inflater.ring[at..].copy_from_slice(&window[window.len() - (RING - at)..]);
        Ok(inflater)
    }

    /// Decodes from the start of other data, in the same memory.
    pub fn restart(&mut self) {
        *self.state = DecompressorOxide::default();
        (self.end, self.pending, self.status) = (0, 0, TINFLStatus::NeedsMoreInput);
    }

    /// Decodes into `out` and returns how many bytes that gave. 0 means that the data has ended,
    /// if `out` is not empty.
    ///
    /// # Errors
    /// As [`InflateFault`] has them.
    pub fn read(&mut self, input: &mut Input, out: &mut [u8]) -> Result<usize, InflateFault> {
        while self.pending == 0 {
            if self.status == TINFLStatus::Done {
                return Ok(0);
            }
            self.inflate(input)?;
        }
        let count = self.pending.min(out.len());
        let from = self.end - self.pending;
        out[..count].copy_from_slice(&self.ring[from..from + count]);
        self.pending -= count;
        Ok(count)
    }

    /// Decodes more into the ring.
    fn inflate(&mut self, input: &mut Input) -> Result<(), InflateFault> {
        if self.end == RING {
            self.end = 0;
        }
        let at = input.at();
        let there = input.available().map_err(InflateFault::Source)?;
        let is_end = there.is_empty();
        let more = if is_end { 0 } else { inflate_flags::TINFL_FLAG_HAS_MORE_INPUT };
        let flags = more | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        let (status, taken, given) = decompress(&mut self.state, there, &mut self.ring, self.end, flags);
        input.consume(taken);
        self.end += given;
        self.pending = given;
        self.status = status;
        match status {
            TINFLStatus::Done | TINFLStatus::BlockBoundary | TINFLStatus::HasMoreOutput => Ok(()),
            TINFLStatus::NeedsMoreInput if !is_end => Ok(()),
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => Err(InflateFault::Cut(at)),
            _ => Err(InflateFault::Wrong(at + taken as u64)),
        }
    }

    /// If the last byte that `read` returned is the last of a block: the number of the bit of the
    /// source that comes next, and the bytes before it that the decoder needs.
    pub fn border(&self, input: &Input) -> Option<(u64, Vec<u8>)> {
        if self.pending > 0 || self.status != TINFLStatus::BlockBoundary {
            return None;
        }
        let state = self.state.block_boundary_state()?;
        let bits = input.at() * 8 - u64::from(state.num_bits);
        // The ring is read backwards from the end of the output. What was never written is zero.
        let mut window = self.ring[self.end.saturating_sub(DEFLATE_WINDOW)..self.end].to_vec();
        let older = DEFLATE_WINDOW - window.len();
        if older > 0 {
            let mut whole = self.ring[RING - older..].to_vec();
            whole.append(&mut window);
            window = whole;
        }
        Some((bits, window))
    }
}
