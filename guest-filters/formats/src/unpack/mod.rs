//! Compressed files as sources. What these formats share.
//!
//! A compressed file is a row of *units* that can be decoded on their own: blocks of xz, members of
//! gzip and lzip, frames of zstd. A [`Codec`] finds the units if the file has an index, and decodes
//! them one after the other. [`Unpacked`] makes a [`Source`] of that. It works in *chunks* of 256
//! KiB of decoded data:
//!
//! * It keeps one decoder running. The next read of a sequential reader continues it.
//! * The chunks that were decoded last are in memory.
//! * A file without an index, or with a unit that is too large to decode for one request, is
//!   decoded once when it is opened. The chunks go to [`Storage`], which all instances share,
//!   together with the points at which decoding can resume. A chunk for which the storage has no
//!   room is decoded again from the point before it.

#[cfg(test)]
pub mod checks;
mod codec;
mod deflate;
pub mod frames;
mod input;
mod limits;
mod pass;
mod signature;
mod storage;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source, TableCache};

pub use codec::{CHUNK, Codec, Index, Point, Stream};
pub use deflate::{InflateFault, Inflater};
pub use input::{Input, SharedInput};
pub use limits::Limits;
pub use pass::MAX_UNITS;
pub use signature::{check_signature, hexadecimal};
pub use storage::Storage;
use storage::{Region, State};

/// What an opened file may keep in memory, in bytes, if nothing else is said: 32 chunks.
pub const RECENT: usize = 8 << 20;

/// A compressed file.
pub struct Unpacked<C> {
    codec: C,
    below: Rc<dyn Source>,
    size: u64,
    pub(crate) points: Vec<Point>,
    /// Whether every unit is in `points`.
    pub(crate) complete: bool,
    region: Region,
    running: RefCell<Option<Running>>,
    recent: TableCache<u64, Vec<u8>>,
    /// How often decoding began at a point, for tests.
    starts: Cell<u32>,
}

/// The decoder that runs, and the offset that it has reached.
struct Running {
    stream: Box<dyn Stream>,
    at: u64,
    /// Whether the unit has ended and the next has not begun.
    ended: bool,
}

/// Where the bytes of a chunk are.
enum Found {
    Zero,
    Stored,
    Decoded(Rc<Vec<u8>>),
}

impl<C: Codec> Unpacked<C> {
    /// Opens a compressed file. The first time that may decode all of it, if the storage does not
    /// know it yet. `recent` bounds the decoded chunks in memory, in bytes.
    ///
    /// # Errors
    /// Those of the source and the storage, and a line if the file is wrong.
    pub fn open(below: Rc<dyn Source>, codec: C, storage: &Storage, recent: usize) -> Result<Unpacked<C>, Error> {
        let region = storage.region(C::NAME, C::WINDOW, &*below)?;
        let index = match region.known()? {
            Some(known) => known,
            None => region.once(|region| pass::find_points(&*below, &codec, region))?,
        };
        let complete = region.is_complete();
        Ok(Unpacked {
            codec,
            below,
            size: index.size,
            points: index.units,
            complete,
            region,
            running: RefCell::new(None),
            recent: TableCache::new(recent.max(CHUNK as usize)),
            starts: Cell::new(0),
        })
    }

    /// How many points there are at which decoding can begin.
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// How often decoding has begun at a point.
    pub fn starts(&self) -> u32 {
        self.starts.get()
    }

    /// The bytes of a chunk. The last one is shorter.
    fn length_of(&self, chunk: u64) -> u64 {
        (self.size - chunk * CHUNK).min(CHUNK)
    }

    fn find(&self, chunk: u64) -> Result<Found, Error> {
        if let Some(bytes) = self.recent.get(&chunk) {
            return Ok(Found::Decoded(bytes));
        }
        Ok(match self.region.state(chunk, 1)?.0 {
            State::Zero => Found::Zero,
            State::Stored => Found::Stored,
            State::Unknown => Found::Decoded(self.decode(chunk)?),
        })
    }

    /// The number of the last point at or before an offset.
    fn point_before(&self, offset: u64) -> usize {
        self.points.partition_point(|point| point.out <= offset).saturating_sub(1)
    }

    /// Decodes a chunk, and what is before it back to where a decoder can begin.
    fn decode(&self, chunk: u64) -> Result<Rc<Vec<u8>>, Error> {
        let start = chunk * CHUNK;
        let nearest = self.point_before(start);
        let point = self.points[nearest];
        // A decoder that is of no use is dropped before another is made: dictionaries are large.
        let running = self.running.borrow_mut().take();
        let mut running = match running.filter(|running| running.at <= start && running.at >= point.out) {
            Some(running) => running,
            None => {
                self.starts.set(self.starts.get().saturating_add(1));
                let window = self.region.window(nearest)?;
                Running { stream: self.codec.stream(point, window)?, at: point.out, ended: false }
            }
        };
        while running.at < start {
            let passed = running.at / CHUNK;
            let is_whole = running.at % CHUNK == 0;
            let bytes = self.fill(&mut running, ((passed + 1) * CHUNK).min(start))?;
            if is_whole {
                self.region.put(passed, &bytes)?;
                let weight = bytes.len();
                self.recent.get_or(passed, || Ok::<_, Error>((bytes, weight)))?;
            }
        }
        let bytes = self.fill(&mut running, start + self.length_of(chunk))?;
        if codec::is_zero(&bytes) {
            self.region.put(chunk, &bytes)?;
        }
        *self.running.borrow_mut() = Some(running);
        let weight = bytes.len();
        self.recent.get_or(chunk, || Ok((bytes, weight)))
    }

    /// Decodes up to the offset `end`, and checks on the way that the units are where the index
    /// says.
    fn fill(&self, running: &mut Running, end: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; (end - running.at) as usize];
        let mut done = 0;
        while done < bytes.len() {
            if running.ended {
                self.begin_unit(running)?;
            }
            let limit = self.unit_end(running.at);
            let wanted = (bytes.len() - done).min(usize::try_from(limit - running.at).unwrap_or(usize::MAX));
            let got = running.stream.read(&mut bytes[done..done + wanted])?;
            running.at += got as u64;
            done += got;
            running.ended = got == 0;
            if got > 0 && self.complete && running.at == limit {
                Self::end_unit(running)?;
            }
        }
        if running.at == self.size {
            Self::end_file(running)?;
        }
        Ok(bytes)
    }

    /// The offset at which the unit at `offset` ends according to the index, or the end of the
    /// file.
    fn unit_end(&self, offset: u64) -> u64 {
        if !self.complete {
            return self.size;
        }
        self.points.get(self.point_before(offset) + 1).map_or(self.size, |point| point.out)
    }

    /// The unit has given all that it should. Reads its end, which has the checksum.
    fn end_unit(running: &mut Running) -> Result<(), Error> {
        if !running.ended && running.stream.read(&mut [0])? > 0 {
            return Err(Self::differs(running.at));
        }
        running.ended = true;
        Ok(())
    }

    /// The file has given all that it should. Nothing may follow but units that are empty.
    fn end_file(running: &mut Running) -> Result<(), Error> {
        Self::end_unit(running)?;
        while running.stream.next_unit()?.is_some() {
            running.ended = false;
            Self::end_unit(running)?;
        }
        Ok(())
    }

    fn begin_unit(&self, running: &mut Running) -> Result<(), Error> {
        while let Some(at) = running.stream.next_unit()? {
            running.ended = false;
            if !self.complete || self.points[self.point_before(running.at)] == (Point { out: running.at, at }) {
                return Ok(());
            }
            // The index has no units that are empty.
            Self::end_unit(running)?;
        }
        Err(Error::image(format!("the data ends after {} bytes, and the index says {}", running.at, self.size)))
    }

    fn differs(at: u64) -> Error {
        Error::image(format!("the index is wrong: the unit that ends around offset {at} is not as long as it says"))
    }

    /// Calls `each` with what is known of each piece of a range: its chunk's bytes, where it begins
    /// in the chunk and the range, and its length.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(Found, u64, u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::image(format!("{length} bytes at {offset} are wanted, and the data ends after {} bytes", self.size))
        })?;
        let mut at = offset;
        while at < end {
            let chunk = at / CHUNK;
            let mut next = ((chunk + 1) * CHUNK).min(end);
            let found = self.find(chunk)?;
            if !matches!(found, Found::Decoded(_)) {
                let (_, count) = self.region.state(chunk, end.div_ceil(CHUNK) - chunk)?;
                next = ((chunk + count.max(1)) * CHUNK).min(end);
            }
            each(found, at, at - offset, next - at)?;
            at = next;
        }
        Ok(())
    }
}

impl<C: Codec> Source for Unpacked<C> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.pieces(offset, into.len() as u64, |found, at, done, length| {
            let part = &mut into[done as usize..(done + length) as usize];
            match found {
                Found::Zero => part.fill(0),
                Found::Stored => self.region.read(at, part)?,
                Found::Decoded(bytes) => {
                    let skip = (at % CHUNK) as usize;
                    part.copy_from_slice(&bytes[skip..skip + part.len()]);
                }
            }
            Ok(())
        })
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, to: u32) -> Result<(), Error> {
        self.pieces(offset, length.into(), |found, at, done, length| {
            let to = to + done as u32;
            match found {
                Found::Zero => buffer.fill(to..to + length as u32, 0),
                Found::Stored => self.region.read_buffer(at, length as u32, buffer, to)?,
                Found::Decoded(bytes) => {
                    let skip = (at % CHUNK) as usize;
                    buffer.write(to, &bytes[skip..skip + length as usize]);
                }
            }
            Ok(())
        })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        while !list.is_full() {
            let (at, end) = (list.at(), list.at() + list.left());
            let chunk = at / CHUNK;
            let (state, count) = self.region.state(chunk, end.div_ceil(CHUNK) - chunk)?;
            let length = ((chunk + count.max(1)) * CHUNK).min(self.size) - at;
            match state {
                State::Zero => list.push_zero(length),
                _ => list.push_data(length),
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.saturating_add(length).min(self.size);
        if end <= offset {
            return Ok(());
        }
        let (chunk, chunks) = (offset / CHUNK, end.div_ceil(CHUNK) - offset / CHUNK);
        let (state, count) = self.region.state(chunk, chunks)?;
        if !matches!(state, State::Unknown) && count >= chunks {
            return Ok(());
        }
        let from = self.codec.offset(self.points[self.point_before(offset)].at).min(self.below.size());
        let after = self.points.get(self.point_before(end - 1) + 1);
        let to = after.map_or(self.below.size(), |point| self.codec.offset(point.at)).min(self.below.size());
        self.below.cache(from, to.saturating_sub(from))
    }

    fn description(&self) -> Option<String> {
        Some(format!("{}, {} bytes compressed", C::NAME, self.below.size()))
    }
}
