//! Decoding the blocks of frames one after the other.

use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use rbdkit_filter_sdk::image::Error;

use super::frame::{self, Frame, Kind, Sum, WINDOW};
use crate::unpack::{Input, Stream};

/// The bit that says that a block is stored as it is.
pub(super) const STORED: u32 = 1 << 31;

/// The decoder.
pub(super) struct Decoding {
    input: Input,
    /// None after the end of a frame.
    current: Option<Current>,
    /// The data of a block, of which `given..length` was not returned.
    block: Vec<u8>,
    given: usize,
    length: usize,
    /// The last bytes before the block, for blocks that refer to them.
    history: Vec<u8>,
    packed: Vec<u8>,
}

/// The frame that is being decoded.
struct Current {
    /// None if decoding began within it. Then its checksum and size are not known.
    frame: Option<Frame>,
    kind: Kind,
    sum: Sum,
    decoded: u64,
}

impl Decoding {
    /// Begins with the next frame.
    pub(super) fn frame(input: Input) -> Result<Decoding, Error> {
        let mut decoding = Decoding::empty(input);
        decoding.begin()?;
        Ok(decoding)
    }

    /// Begins with the next block, within a frame.
    pub(super) fn within(input: Input, kind: Kind, window: Vec<u8>) -> Decoding {
        let mut decoding = Decoding::empty(input);
        decoding.history = window;
        decoding.current = Some(Current { frame: None, kind, sum: Sum::new(), decoded: 0 });
        decoding
    }

    fn empty(input: Input) -> Decoding {
        let (block, history, packed) = (Vec::new(), Vec::new(), Vec::new());
        Decoding { input, current: None, block, given: 0, length: 0, history, packed }
    }

    /// Reads the header of the next frame. Returns where it is, or none at the end of the file.
    fn begin(&mut self) -> Result<Option<u64>, Error> {
        let Some(frame) = frame::next(&mut self.input)? else { return Ok(None) };
        let (at, kind) = (frame.at, frame.kind);
        (self.given, self.length) = (0, 0);
        self.history.clear();
        self.current = Some(Current { frame: Some(frame), kind, sum: Sum::new(), decoded: 0 });
        Ok(Some(at))
    }

    /// Decodes the next block. False at the end of the frame.
    fn next_block(&mut self) -> Result<bool, Error> {
        let Some(Current { kind, .. }) = self.current else { return Ok(false) };
        let at = self.input.at();
        if kind.is_legacy() && at >= self.input.size() {
            self.current = None;
            return Ok(false);
        }
        let word = u32::from_le_bytes(self.input.array("the size of an lz4 block")?);
        let wrong = |what: String| Error::image(format!("the lz4 block at {at} {what}"));
        let (is_stored, length) = match kind.is_legacy() {
            true => (false, word as usize),
            false => (word & STORED != 0, (word & !STORED) as usize),
        };
        if kind.is_legacy() && length > kind.max_stored() {
            // It is the number of another frame.
            self.input.go_to(at);
            self.current = None;
            return Ok(false);
        }
        if word == 0 && !kind.is_legacy() {
            return self.end_frame().map(|()| false);
        }
        if length > kind.max_stored() {
            return Err(wrong(format!("has {length} bytes; blocks of its frame have {} at most", kind.max_stored())));
        }
        self.packed.resize(length, 0);
        self.input.fill(&mut self.packed, "an lz4 block")?;
        if kind.has_block_checksums() {
            let checksum = u32::from_le_bytes(self.input.array("the checksum of an lz4 block")?);
            let mut sum = Sum::new();
            sum.update(&self.packed);
            check(checksum, sum.finish()).map_err(wrong)?;
        }
        self.keep_history(kind);
        (self.given, self.length) = (0, 0);
        self.block.resize(kind.max_block(), 0);
        self.length = match (is_stored, kind.is_independent()) {
            (true, _) => {
                self.block[..length].copy_from_slice(&self.packed);
                length
            }
            (false, true) => {
                decompress_into(&self.packed, &mut self.block).map_err(|e| wrong(format!("is wrong: {e}")))?
            }
            (false, false) => decompress_into_with_dict(&self.packed, &mut self.block, &self.history)
                .map_err(|error| wrong(format!("is wrong: {error}")))?,
        };
        if let Some(current) = &mut self.current {
            let data = &self.block[..self.length];
            current.decoded += data.len() as u64;
            if kind.has_checksum() && current.frame.is_some() {
                current.sum.update(data);
            }
        }
        Ok(true)
    }

    /// Keeps the end of the block, if the next one may refer to it.
    fn keep_history(&mut self, kind: Kind) {
        if kind.is_independent() {
            return;
        }
        let data = &self.block[self.length.saturating_sub(WINDOW)..self.length];
        let older = self.history.len().min(WINDOW - data.len());
        self.history.drain(..self.history.len() - older);
        self.history.extend_from_slice(data);
    }

    /// Reads what follows the last block.
    fn end_frame(&mut self) -> Result<(), Error> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let checksum = match current.kind.has_checksum() {
            true => Some(u32::from_le_bytes(self.input.array("the checksum of an lz4 frame")?)),
            false => None,
        };
        let Some(frame) = current.frame else { return Ok(()) };
        let wrong = |what: String| Error::image(format!("the lz4 frame at {} {what}", frame.at));
        if let Some(checksum) = checksum {
            check(checksum, current.sum.finish()).map_err(wrong)?;
        }
        match frame.content_size {
            Some(size) if size != current.decoded => {
                Err(wrong(format!("says that it has {size} bytes, and it has {}", current.decoded)))
            }
            _ => Ok(()),
        }
    }
}

fn check(says: u32, has: u32) -> Result<(), String> {
    if says == has {
        return Ok(());
    }
    Err(format!("has the wrong checksum: it says {says:08x}, and the data has {has:08x}"))
}

impl Stream for Decoding {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        while self.given == self.length {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = (self.length - self.given).min(out.len());
        out[..count].copy_from_slice(&self.block[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        Ok(self.begin()?.map(|at| at << 8))
    }

    fn consumed(&self) -> u64 {
        self.input.at()
    }

    fn resume(&self) -> Option<(u64, Vec<u8>)> {
        let kind = self.current.as_ref()?.kind;
        if self.given < self.length {
            return None;
        }
        let mut window = Vec::new();
        if !kind.is_independent() {
            // Before the start of the frame there is nothing. It reads as zero.
            window.resize(WINDOW, 0);
            window.extend_from_slice(&self.history);
            window.extend_from_slice(&self.block[..self.length]);
            window.drain(..window.len() - WINDOW);
        }
        Some((kind.place(self.input.at()), window))
    }
}
