//! Inflating deflated data (RFC 1951), at once or piece by piece.
//!
//! This is zlib-rs through its interface of C, since only that tells where within a byte a block
//! ends, and can begin there.
#![allow(unsafe_code, reason = "the functions of zlib take pointers")]

use std::mem::size_of;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_FINISH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateGetDictionary, inflateInit2_,
    inflatePrime, inflateReset, inflateSetDictionary, z_stream, zlibVersion,
};

/// The most bytes before a place that the data after it refers to.
pub const WINDOW: usize = 32 << 10;

/// How deflated data is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deflated {
    /// As RFC 1951 says.
    Raw,
    /// With the header and checksum of RFC 1950.
    Zlib,
}

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that it took.
    pub taken: usize,
    /// Bytes that it put into the output.
    pub given: usize,
    /// Why it returned.
    pub outcome: Outcome,
}

/// Why a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The deflated data has ended. A checksum that it has was right.
    Ended,
    /// A block has ended, or the input was used up, or the output is full.
    Paused,
    /// The data is wrong.
    Wrong,
}

/// Where a call returns, besides at the end of the data, of the input and of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nowhere else. The output has room for all of the data, or what follows is not wanted: the
    /// decoder cannot go on after that call.
    Full,
    /// After each block.
    Block,
}

/// The state of decoding.
pub struct InflateState {
    /// In a box, since zlib may keep its address.
    stream: Box<z_stream>,
}

impl InflateState {
    /// At the begin of deflated data.
    pub fn new(wrapping: Deflated) -> InflateState {
        let bits = match wrapping {
            Deflated::Raw => -15,
            Deflated::Zlib => 15,
        };
        let mut stream = Box::<z_stream>::default();
        // SAFETY: the stream is as zlib-rs makes it, with Rust's allocator; the version is its own.
        let done = unsafe { inflateInit2_(&mut *stream, bits, zlibVersion(), size_of::<z_stream>() as i32) };
        assert_eq!(done, Z_OK, "zlib has no memory for its state");
        InflateState { stream }
    }

    /// Between two blocks of raw data. `bits` bits of the byte before the input belong to the next
    /// block, the upper ones of `byte`. `window` is what [`window`](InflateState::window) gave
    /// there.
    pub fn resume(bits: u8, byte: u8, window: &[u8]) -> InflateState {
        let mut state = InflateState::new(Deflated::Raw);
        let value = i32::from(byte).checked_shr(8 - u32::from(bits.min(8))).unwrap_or(0);
        // SAFETY: the stream was initialised, and the window is a slice of that length.
        let done = unsafe {
            [
                inflatePrime(&mut *state.stream, bits.min(8).into(), value),
                inflateSetDictionary(&mut *state.stream, window.as_ptr(), window.len() as u32),
            ]
        };
        debug_assert_eq!(done, [Z_OK; 2]);
        state
    }

    /// Goes to the begin of other data, which is wrapped in the same way.
    pub fn reset(&mut self) {
        // SAFETY: the stream was initialised.
        let done = unsafe { inflateReset(&mut *self.stream) };
        debug_assert_eq!(done, Z_OK);
    }

    /// Decodes from `input` into `out`.
    pub fn step(&mut self, input: &[u8], out: &mut [u8], until: Until) -> Step {
        let input = &input[..input.len().min(u32::MAX as usize)];
        let room = out.len().min(u32::MAX as usize);
        let stream = &mut *self.stream;
        (stream.next_in, stream.avail_in) = (input.as_ptr().cast_mut(), input.len() as u32);
        (stream.next_out, stream.avail_out) = (out.as_mut_ptr(), room as u32);
        let flush = match until {
            Until::Full => Z_FINISH,
            Until::Block => Z_BLOCK,
        };
        // SAFETY: the stream was initialised; it reads only the input and writes only the output,
        // whose lengths it was given.
        let returned = unsafe { inflate(stream, flush) };
        let taken = input.len() - stream.avail_in as usize;
        let given = room - stream.avail_out as usize;
        let outcome = match returned {
            Z_STREAM_END => Outcome::Ended,
            Z_OK | Z_BUF_ERROR => Outcome::Paused,
            _ => Outcome::Wrong,
        };
        Step { taken, given, outcome }
    }

    /// If the last step ended between two blocks: how many bits of the last byte that it took
    /// belong to the next block, the upper ones.
    pub fn boundary(&self) -> Option<u8> {
        const BETWEEN_BLOCKS: i32 = 128;
        const LAST_BLOCK: i32 = 64;
        const BITS: i32 = 63;
        let bits_and_flags = self.stream.data_type;
        let bits = (bits_and_flags & BITS) as u8;
        (bits_and_flags & (BETWEEN_BLOCKS | LAST_BLOCK) == BETWEEN_BLOCKS && bits < 8).then_some(bits)
    }

    /// The last bytes that were decoded, at most [`WINDOW`].
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut length = 0;
        // SAFETY: the stream was initialised, and its window is not longer than this one.
        let done = unsafe { inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut length) };
        debug_assert_eq!(done, Z_OK);
        window.truncate(length as usize);
        window
    }
}

impl Drop for InflateState {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised, and is not used any more.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{piped, sample};

    /// The deflated data of gzip, whose header has 10 bytes without a name.
    fn deflated(data: &[u8], level: &str) -> Vec<u8> {
        piped("gzip", &["-n", level], data)[10..].to_vec()
    }

    #[test]
    fn decoding_resumes_at_every_block_within_its_byte() {
        let data = sample(600_000, 8);
        let input = deflated(&data, "-1");
        let mut first = InflateState::new(Deflated::Raw);
        let mut out = vec![0; data.len()];
        let (mut taken, mut given, mut resumed) = (0, 0, [0; 8]);
        loop {
            // Small pieces, so that a block also ends in a step that began within it.
            let (limit, room) = ((taken + 1777).min(input.len()), (given + 5003).min(out.len()));
            let step = first.step(&input[taken..limit], &mut out[given..room], Until::Block);
            taken += step.taken;
            given += step.given;
            match step.outcome {
                Outcome::Ended => break,
                Outcome::Paused => assert!(step.taken + step.given > 0 || first.boundary().is_some()),
                Outcome::Wrong => panic!("wrong after {taken} bytes"),
            }
            if let Some(bits) = first.boundary() {
                resumed[usize::from(bits)] += 1;
                let window = first.window();
                assert!(window == data[given.saturating_sub(WINDOW)..given]);
                let mut second = InflateState::resume(bits, taken.checked_sub(1).map_or(0, |at| input[at]), &window);
                let mut rest = vec![0; data.len() - given];
                let step = second.step(&input[taken..], &mut rest, Until::Full);
                assert_eq!((step.outcome, step.given), (Outcome::Ended, rest.len()), "{bits} bits at {taken}");
                assert!(rest == data[given..], "{bits} bits at {taken}");
            }
        }
        assert!(out == data && given == data.len());
        assert!(resumed.iter().filter(|count| **count > 0).count() > 4, "{resumed:?}");
    }

    #[test]
    fn a_decoder_can_begin_again_and_knows_wrong_data() {
        let data = sample(10_000, 9);
        let input = deflated(&data, "-9");
        let mut out = vec![0; data.len()];
        let mut state = InflateState::new(Deflated::Raw);
        assert_eq!(state.step(&[7; 100], &mut out, Until::Block).outcome, Outcome::Wrong);
        for _ in 0..2 {
            state.reset();
            let step = state.step(&input, &mut out, Until::Full);
            assert_eq!((step.outcome, step.given), (Outcome::Ended, data.len()));
            assert!(out == data);
            out.fill(0);
        }
        state.reset();
        let step = state.step(&input[..100], &mut out, Until::Full);
        assert_eq!((step.outcome, step.taken), (Outcome::Paused, 100));
        assert_eq!(state.step(&[], &mut out[step.given..], Until::Full).taken, 0);
    }
}
