//! Decoding the frames of a file one after the other.

use std::io::Read;

use rbdkit_filter_sdk::image::Error;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::header::{self, Frame};
use super::index::Checksums;
use super::options::Options;
use crate::unpack::{Input, SharedInput, Stream};

/// The header of an empty frame. A decoder that has seen one reserves the window of the next frame
/// at once. Otherwise its buffer grows with the data and doubles, which takes up to three times as
/// much.
const EMPTY_FRAME: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0];

/// The decoder.
pub(super) struct Decoding {
    input: SharedInput,
    options: Options,
    checksums: Checksums,
    /// The most bytes of a frame, as far as it is known.
    largest: u64,
    decoder: FrameDecoder,
    /// None after its end.
    frame: Option<Frame>,
    /// Bytes of the frame that were returned.
    length: u64,
}

impl Decoding {
    /// Begins with the next frame of the input. Frames have at most `largest` bytes of data, as far
    /// as it is known.
    pub(super) fn begin(input: Input, options: Options, checksums: Checksums, largest: u64) -> Result<Decoding, Error> {
        let (input, decoder) = (SharedInput::new(input), FrameDecoder::new());
        let mut decoding = Decoding { input, options, checksums, largest, decoder, frame: None, length: 0 };
        decoding.next_frame()?;
        Ok(decoding)
    }

    /// Reads the header of the next frame. Returns where it is, or none at the end of the file.
    fn next_frame(&mut self) -> Result<Option<u64>, Error> {
        let frame = self.input.with(|input| -> Result<Option<Frame>, Error> {
            let frame = header::next(input)?;
            if let Some(frame) = &frame {
                // The decoder reads it again.
                input.go_to(frame.at);
            }
            Ok(frame)
        })?;
        self.length = 0;
        let Some(frame) = frame else { return Ok(None) };
        let (at, window, limit) = (frame.at, frame.window, self.options.max_window);
        if frame.dictionary != 0 {
            return Err(wrong(
                at,
                &format!("needs the dictionary {}; files with dictionaries are not supported", frame.dictionary),
            ));
        }
        if window > limit {
            return Err(wrong(
                at,
                &format!(
                    "needs a window of {window} bytes, and the limit is {limit}: zstd-max-window=SIZE raises it, and \
                     --filter-limit zstd:memory=SIZE gives the memory"
                ),
            ));
        }
        let started = self.prepare(window).and_then(|()| self.decoder.init(&mut self.input));
        self.frame = Some(frame);
        started.map_err(|error| self.failed(&error))?;
        Ok(Some(at))
    }

    /// Prepares the decoder for a frame with this window. If the window is larger than all the data
    /// of a frame, it is not reserved: decoded frames are in memory as well.
    fn prepare(&mut self, window: u64) -> Result<(), FrameDecoderError> {
        if window > self.largest {
            self.decoder = FrameDecoder::new();
        }
        self.decoder.set_max_window_size(self.options.max_window);
        if window <= self.largest { self.decoder.init(&EMPTY_FRAME[..]) } else { Ok(()) }
    }

    /// The error of the decoder within the current frame.
    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        let at = self.frame.as_ref().map_or(0, |frame| frame.at);
        self.input.error(&format!("the zstd frame at {at}"), &std::io::Error::other(error.to_string()))
    }

    /// Checks the frame, all of which was returned.
    fn finish(&mut self) -> Result<(), Error> {
        let Some(frame) = self.frame.take() else { return Ok(()) };
        if let Some(size) = frame.content_size.filter(|size| *size != self.length) {
            return Err(wrong(frame.at, &format!("says that it has {size} bytes, and it has {}", self.length)));
        }
        let Some(has) = self.decoder.get_calculated_checksum() else { return Ok(()) };
        if let Some(says) = self.decoder.get_checksum_from_data().filter(|says| *says != has) {
            let line = format!("has the wrong checksum: it says {says:08x}, and the data has {has:08x}");
            return Err(wrong(frame.at, &line));
        }
        let known = self.checksums.binary_search_by_key(&frame.at, |(at, _)| *at);
        if let Some((_, says)) = known.ok().and_then(|n| self.checksums.get(n)).filter(|(_, says)| *says != has) {
            let line = format!("has the wrong checksum: the seek table says {says:08x}, and the data has {has:08x}");
            return Err(wrong(frame.at, &line));
        }
        Ok(())
    }
}

fn wrong(at: u64, what: &str) -> Error {
    Error::image(format!("the zstd frame at {at} {what}"))
}

impl Stream for Decoding {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let Some(content_size) = self.frame.as_ref().map(|frame| frame.content_size) else { return Ok(0) };
        loop {
            let got = self.decoder.read(out).map_err(|error| self.failed(&error))?;
            if got > 0 {
                self.length += got as u64;
                if content_size.is_some_and(|size| self.length > size) {
                    return self.finish().map(|()| got);
                }
                self.options.limits.check_unit("frame", self.length)?;
                return Ok(got);
            }
            if self.decoder.is_finished() {
                return self.finish().map(|()| 0);
            }
            // One block at a time: the buffer of the decoder would grow with more.
            self.decoder
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| self.failed(&error))?;
        }
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        self.next_frame()
    }

    fn consumed(&self) -> u64 {
        self.input.with(|input| input.at())
    }
}
