//! Decoding the blocks of streams one after the other.
//!
//! The decoder of the library takes a stream. To begin at a block, it is given a header of ours and
//! then the bits from the block on. It is fed without room for output until it has a whole block,
//! and then emptied without input. So it is known when a block has ended.

use std::rc::Rc;

use bzip2::{Decompress, Error as Failure, Status};
use rbdkit_filter_sdk::image::{Error, Source, read};

use super::format::{BLOCK_MAGIC, END_MAGIC, MAGIC, WITHIN};
use crate::unpack::{Input, Stream, hexadecimal};

/// How many bytes are moved to their place at once.
const PIECE: usize = 64 << 10;
/// The header for the decoder that begins at a block: the largest blocks.
const OUR_HEADER: &[u8; 4] = b"BZh9";
/// The bits of a number that marks a block or the end, and of the CRC after it.
const END_BITS: u64 = 48 + 32;

/// The decoder.
pub struct Decoding {
    below: Rc<dyn Source>,
    input: Input,
    decoder: Decompress,
    /// The bit of the file at which the decoder's first bit would be.
    origin: u64,
    /// Whether decoding began at a block of the stream. Then the CRC of the stream is not known.
    is_resumed: bool,
    /// The bits by which bytes are moved, and the byte whose last bits come next.
    shift: u32,
    carried: Option<u8>,
    /// What the decoder gets next.
    buffer: Vec<u8>,
    used: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The decoder needs input.
    Feeding,
    /// It may have a block. The number says whether it has given bytes of it.
    Emptying { has_given: bool },
    /// A block has ended.
    Border,
    /// The stream has ended.
    Ended,
}

impl Decoding {
    /// Begins with the stream at an offset.
    pub fn stream_at(below: Rc<dyn Source>, at: u64) -> Result<Decoding, Error> {
        let mut input = Input::new(Rc::clone(&below), at);
        let header = header(&mut input)?;
        Ok(Decoding::new(below, input, header.to_vec(), at * 8))
    }

    /// Begins with the block at a bit, which is not the first of its stream.
    pub fn block_at(below: Rc<dyn Source>, bit: u64) -> Result<Decoding, Error> {
        let mut input = Input::new(Rc::clone(&below), bit / 8);
        let shift = (bit % 8) as u32;
        let carried = if shift > 0 { Some(input.array::<1>("a bzip2 block")?[0]) } else { None };
        let origin = bit.wrapping_sub(8 * OUR_HEADER.len() as u64);
        let mut decoding = Decoding::new(below, input, OUR_HEADER.to_vec(), origin);
        (decoding.is_resumed, decoding.shift, decoding.carried) = (true, shift, carried);
        Ok(decoding)
    }

    fn new(below: Rc<dyn Source>, input: Input, buffer: Vec<u8>, origin: u64) -> Decoding {
        let decoder = Decompress::new(false);
        let state = State::Feeding;
        Decoding { below, input, decoder, origin, is_resumed: false, shift: 0, carried: None, buffer, used: 0, state }
    }

    /// The bit of the file up to which the decoder has taken input. It has not used the last ones.
    fn taken(&self) -> u64 {
        self.origin.wrapping_add(8 * self.decoder.total_in())
    }

    /// Fills the buffer with what comes next. False at the end of the file.
    fn refill(&mut self) -> Result<bool, Error> {
        if self.used < self.buffer.len() {
            return Ok(true);
        }
        (self.buffer, self.used) = (std::mem::take(&mut self.buffer), 0);
        self.buffer.clear();
        let there = self.input.available()?;
        let piece = &there[..there.len().min(PIECE)];
        let count = piece.len();
        match self.carried {
            None => self.buffer.extend_from_slice(piece),
            Some(mut before) => {
                for byte in piece {
                    self.buffer.push(before << self.shift | byte >> (8 - self.shift));
                    before = *byte;
                }
                self.carried = Some(before);
                if count == 0 {
                    self.buffer.push(before << self.shift);
                    self.carried = None;
                }
            }
        }
        self.input.consume(count);
        Ok(!self.buffer.is_empty())
    }

    /// Gives the decoder input until it has a block, or the stream has ended.
    fn feed(&mut self) -> Result<(), Error> {
        if !self.refill()? {
            let size = self.below.size();
            return Err(Error::image(format!("the file ends after {size} bytes, within a bzip2 stream")));
        }
        let before = self.decoder.total_in();
        let result = self.decoder.decompress(&self.buffer[self.used..], &mut []);
        self.used += (self.decoder.total_in() - before) as usize;
        self.state = match self.check(result)? {
            Status::StreamEnd => {
                self.end(self.taken().div_ceil(8));
                State::Ended
            }
            _ => State::Emptying { has_given: false },
        };
        Ok(())
    }

    /// The stream ends at a byte of the file.
    fn end(&mut self, at: u64) {
        self.input.go_to(at);
        self.buffer.clear();
        self.used = 0;
        self.state = State::Ended;
    }

    fn check(&self, result: Result<Status, Failure>) -> Result<Status, Error> {
        let at = self.taken() / 8;
        match result {
            Ok(Status::MemNeeded) => Err(Error::image("there is no memory for a bzip2 block")),
            Ok(status) => Ok(status),
            Err(_) => Err(Error::image(format!("the bzip2 data before {at} is wrong, or has the wrong CRC"))),
        }
    }

    /// At the border of a block: the bit at which the next block or the end begins, and its number.
    /// The decoder has taken at most 63 bits that it has not used.
    fn border(&self) -> Result<Option<(u64, u64)>, Error> {
        let taken = self.taken();
        let from = (taken / 8).saturating_sub(8);
        let length = (self.below.size().saturating_sub(from)).min(8 + 7) as usize;
        let bytes = read(&*self.below, from, length)?;
        let number = bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        let end = (from + length as u64) * 8;
        for bit in taken.saturating_sub(63)..=taken {
            let Some(after) = end.checked_sub(bit + 48) else { break };
            let magic = (number >> after) as u64 & ((1 << 48) - 1);
            if bit >= from * 8 && [BLOCK_MAGIC, END_MAGIC].contains(&magic) {
                return Ok(Some((bit, magic)));
            }
        }
        Ok(None)
    }
}

/// The header of a stream.
fn header(input: &mut Input) -> Result<[u8; 4], Error> {
    let at = input.at();
    let header: [u8; 4] = input.array("the header of a bzip2 stream")?;
    if header[..3] != *MAGIC {
        let there = hexadecimal(&header[..3]);
        return Err(Error::image(format!("there is no bzip2 stream at {at}: it begins with {there}, not 425a68")));
    }
    if !matches!(header[3], b'1'..=b'9') {
        return Err(Error::image(format!(
            "the bzip2 stream at {at} has the block size {:02x}; 31 to 39 (1 to 9 times 100 kB) are possible",
            header[3]
        )));
    }
    Ok(header)
}

impl Stream for Decoding {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.state {
                State::Ended => return Ok(0),
                State::Feeding => self.feed()?,
                State::Border => {
                    self.state = State::Feeding;
                    // The decoder would compare the CRC of the stream with that of a part of it.
                    if self.is_resumed
                        && let Some((bit, END_MAGIC)) = self.border()?
                    {
                        self.end((bit + END_BITS).div_ceil(8));
                    }
                }
                State::Emptying { has_given } => {
                    let before = self.decoder.total_out();
                    let result = self.decoder.decompress(&[], out);
                    let got = (self.decoder.total_out() - before) as usize;
                    self.check(result)?;
                    self.state = match () {
                        () if got == out.len() => State::Emptying { has_given: true },
                        () if got > 0 || has_given => State::Border,
                        () => State::Feeding,
                    };
                    if got > 0 {
                        return Ok(got);
                    }
                }
            }
        }
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        if self.input.only_zeroes_follow()? {
            return Ok(None);
        }
        let at = self.input.at();
        *self = Decoding::stream_at(Rc::clone(&self.below), at)?;
        Ok(Some(at * 16))
    }

    fn consumed(&self) -> u64 {
        self.input.at()
    }

    fn resume(&self) -> Option<(u64, Vec<u8>)> {
        match (self.state, self.border()) {
            (State::Border, Ok(Some((bit, BLOCK_MAGIC)))) => Some((bit * 2 + WITHIN, Vec::new())),
            _ => None,
        }
    }
}
