//! What a compression has to tell and to do.

use rbdkit_filter_sdk::image::Error;

/// The unit of what is kept, in bytes of decoded data.
pub const CHUNK: u64 = 256 << 10;

/// The most points that are kept of a file without an index. A file with more gets a larger
/// distance between them.
pub const MAX_POINTS: usize = 4096;

/// A decoder that runs through a file from some point on.
pub trait Stream {
    /// Decodes into `out` and returns how many bytes that gave. 0 means that the unit has ended,
    /// and that its checksum was right.
    ///
    /// # Errors
    /// Those of the source, and a line if the data is wrong.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error>;

    /// Goes on to the next unit after `read` returned 0. Returns where it begins, as
    /// [`Point::at`] has it, or none at the end of the file.
    ///
    /// # Errors
    /// Those of the source, and a line if what follows is no unit.
    fn next_unit(&mut self) -> Result<Option<u64>, Error>;

    /// How many bytes of the compressed file were read.
    fn consumed(&self) -> u64;

    /// If decoding can resume after the last byte that `read` returned, within a unit: where, and
    /// the bytes before it that the decoder needs.
    fn resume(&self) -> Option<(u64, Vec<u8>)> {
        None
    }
}

/// A place at which decoding can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The offset in the decoded data.
    pub out: u64,
    /// The place in the compressed file, in a form of the codec's.
    pub at: u64,
}

/// The units of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Where they begin. The first begins at 0.
    pub units: Vec<Point>,
    /// Bytes of decoded data.
    pub size: u64,
}

impl Index {
    /// The size of the largest unit, in bytes of decoded data.
    pub fn largest(&self) -> u64 {
        let ends = self.units.iter().skip(1).map(|point| point.out).chain([self.size]);
        self.units.iter().zip(ends).map(|(unit, end)| end - unit.out).max().unwrap_or(0)
    }
}

/// A compression.
pub trait Codec {
    /// Its name in messages.
    const NAME: &'static str;

    /// A unit up to this size can be decoded within one request, in bytes of decoded data. The
    /// limit of a request is one second; this should take a third of it.
    const MAX_UNIT: u64;

    /// The distance of points within a unit, in bytes of decoded data. Inflating that much takes
    /// some 20 ms.
    const SPACING: u64 = 4 << 20;

    /// How many bytes [`Stream::resume`] gives for the decoder. 0 if it needs none.
    const WINDOW: u32 = 0;

    /// The units, if the file tells without being decoded. By default it does not.
    ///
    /// # Errors
    /// Those of the source, and a line if the file is wrong.
    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(None)
    }

    /// Begins to decode at a point. `window` is what [`Stream::resume`] gave there; it is empty for
    /// the begin of a unit.
    ///
    /// # Errors
    /// Those of the source, and a line if there is no unit.
    fn stream(&self, point: Point, window: Vec<u8>) -> Result<Box<dyn Stream>, Error>;

    /// The offset in the compressed file of a place.
    fn offset(&self, at: u64) -> u64;

    /// The begin of the first unit. By default it is that of the file.
    fn start(&self) -> Point {
        Point { out: 0, at: 0 }
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
