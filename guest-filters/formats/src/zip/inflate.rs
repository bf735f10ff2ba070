//! A deflated member as a source.
//!
//! The directory says how long the data of a member is. A member of at most 8 MiB is decoded when a
//! request needs it, and stays in memory. A larger one is decoded once when it is opened, as a gzip
//! file is: see [`crate::unpack`].

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, quoted};

use super::Entry;
use crate::checksum::{CRC32, Crc32};
use crate::unpack::{Codec, Index, InflateFault, Inflater, Input, Point, RECENT, Storage, Stream, Unpacked};

/// Deflate makes at most 1032 bytes of one.
pub const MOST_RATIO: u64 = 1032;

/// Opens the deflated data of a member.
///
/// # Errors
/// Those of the source and the storage, and a line if the data is wrong.
pub fn open(stored: Rc<dyn Source>, entry: &Entry, storage: &Storage) -> Result<Unpacked<Deflated>, Error> {
    let promised = Promised { name: quoted(&entry.name), size: entry.size, crc: entry.crc };
    Unpacked::open(Rc::clone(&stored), Deflated { stored, promised }, storage, RECENT)
}

/// What the directory says of a member.
#[derive(Clone)]
struct Promised {
    name: String,
    size: u64,
    crc: u32,
}

impl Promised {
    fn wrong(&self, why: String) -> Error {
        Error::image(format!("{}: its deflated data {why}", self.name))
    }
}

/// The decoder of a deflated member. A place is the number of a bit of the deflated data.
pub struct Deflated {
    stored: Rc<dyn Source>,
    promised: Promised,
}

impl Codec for Deflated {
    const NAME: &'static str = "zip";
    // Decoding it takes a tenth of a second, and all of it stays in memory.
    const MAX_UNIT: u64 = RECENT as u64;
    const WINDOW: u32 = crate::zlib::WINDOW as u32;

    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(Some(Index { units: vec![self.start()], size: self.promised.size }))
    }

    fn offset(&self, at: u64) -> u64 {
        at / 8
    }

    fn stream(&self, point: Point, window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let input = Input::new(Rc::clone(&self.stored), point.at.div_ceil(8));
        let (inflater, sum) = match point.out {
            0 => (Inflater::default(), Some(CRC32.digest())),
            _ => (Inflater::from_border(&*self.stored, point.at, &window)?, None),
        };
        Ok(Box::new(Inflating { input, inflater, sum, length: point.out, promised: self.promised.clone() }))
    }
}

/// The state of decoding.
struct Inflating {
    input: Input,
    inflater: Inflater,
    /// None if decoding did not begin at the start.
    sum: Option<Crc32>,
    /// The offset in the data that was reached.
    length: u64,
    promised: Promised,
}

impl Inflating {
    /// The data has ended. Compares it with what was promised.
    fn check_end(&mut self) -> Result<(), Error> {
        let Promised { size, crc, .. } = self.promised;
        if self.length < size {
            return Err(self.promised.wrong(format!("gives {} bytes, and {size} are promised", self.length)));
        }
        match self.sum.take().map(Crc32::finalize) {
            Some(found) if found != crc => Err(self
                .promised
                .wrong(format!("gives the wrong CRC: the directory says {crc:08x}, and the data has {found:08x}"))),
            _ => Ok(()),
        }
    }
}

impl Stream for Inflating {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let (promised, length) = (&self.promised, self.length);
        let got = self.inflater.read(&mut self.input, out).map_err(|fault| match fault {
            InflateFault::Source(error) => error,
            InflateFault::Cut(_) => promised.wrong(format!("ends after {length} of {} bytes", promised.size)),
            InflateFault::Wrong(at) => promised.wrong(format!("is wrong around its byte {at}")),
        })?;
        if got == 0 {
            self.check_end()?;
            return Ok(0);
        }
        if got as u64 > promised.size - length {
            return Err(promised.wrong(format!("gives more than the {} bytes that are promised", promised.size)));
        }
        if let Some(sum) = &mut self.sum {
            sum.update(&out[..got]);
        }
        self.length += got as u64;
        Ok(got)
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn consumed(&self) -> u64 {
        self.input.at()
    }

    fn resume(&self) -> Option<(u64, Vec<u8>)> {
        self.inflater.border(&self.input)
    }
}
