//! xz files: streams that follow each other, with zeroes between them. Each stream ends with an
//! index of its blocks. So the blocks are found from the end of the file, without decoding.

mod blocks;
mod index;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use crate::unpack::{CHUNK, Codec, Index, Point, Storage, Stream, Unpacked};
use crate::{FormatInfo, Opened, Report};

/// xz.
pub const INFO: FormatInfo = FormatInfo {
    name: "xz",
    probe: |below| Ok(below.size() >= 32 && read(below, 0, 6)? == MAGIC),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default(), Limits::default())?)) },
};

const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// The size of the header and the footer of a stream.
const HEADER: u64 = 12;
/// The largest dictionary that is allocated. xz uses that much at level 9.
const MAX_DICTIONARY: u32 = 64 << 20;
/// LZMA gives at least 60 MB/s in a filter: this takes half a second.
pub(crate) const MAX_UNIT: u64 = 32 << 20;
/// What decoded blocks may take in memory, in bytes.
const MAX_RECENT: u64 = 24 << 20;

/// What blocks of xz and members of lzip may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file with a larger block is refused. In bytes of decoded data.
    pub max_block: Option<u64>,
    /// How many decoded blocks stay in memory, as long as these are at most 24 MiB.
    pub max_depth: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_block: None, max_depth: 8 }
    }
}

impl Limits {
    /// Checks the blocks of a file. Returns how many bytes of decoded data may stay in memory.
    ///
    /// # Errors
    /// A line if a block is too large.
    pub(crate) fn check(&self, unit: &str, index: &Index) -> Result<usize, Error> {
        let ends = index.units.iter().skip(1).map(|point| point.out).chain([index.size]);
        let largest = index.units.iter().zip(ends).map(|(unit, end)| end - unit.out).max().unwrap_or(0);
        match self.max_block {
            Some(limit) if largest > limit => {
                Err(Error::image(format!("a {unit} has {largest} bytes, and the limit is {limit}")))
            }
            _ => Ok(self.max_depth.saturating_mul(largest).clamp(CHUNK, MAX_RECENT) as usize),
        }
    }
}

/// Opens an xz file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong or beyond the limits.
pub fn open(below: Rc<dyn Source>, storage: &Storage, limits: Limits) -> Result<Unpacked<Xz>, Error> {
    let index = index::blocks(&*below)?.0;
    let recent = limits.check("block", &index)?;
    Unpacked::open(Rc::clone(&below), Xz { below, index }, storage, recent)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let (index, streams) = index::blocks(&**below)?;
    report.size = Some(index.size);
    report.fact("streams", streams);
    report.fact("blocks", index.units.len());
    Ok(report)
}

/// The decoder of xz files.
pub struct Xz {
    below: Rc<dyn Source>,
    index: Index,
}

/// The checksum of the blocks of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    None = 0,
    Crc32 = 1,
    Crc64 = 4,
    Sha256 = 10,
}

impl Check {
    /// The check that two bytes of a stream's header or footer name.
    fn of(flags: [u8; 2], at: u64) -> Result<Check, Error> {
        Ok(match flags {
            [0, 0] => Check::None,
            [0, 1] => Check::Crc32,
            [0, 4] => Check::Crc64,
            [0, 10] => Check::Sha256,
            [a, b] => {
                return Err(Error::image(format!(
                    "the xz stream at {at} has the flags {a:02x}{b:02x}; a checksum of 0000 (none), 0001 (CRC32), 0004 \
                     (CRC64) or 000a (SHA-256) is supported"
                )));
            }
        })
    }

    fn size(self) -> usize {
        match self {
            Check::None => 0,
            Check::Crc32 => 4,
            Check::Crc64 => 8,
            Check::Sha256 => 32,
        }
    }
}

/// A place is the offset of a block, and the check of its stream in the low four bits.
fn place(offset: u64, check: Check) -> u64 {
    offset << 4 | check as u64
}

impl Codec for Xz {
    const NAME: &'static str = "xz";
    const MAX_UNIT: u64 = MAX_UNIT;

    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(Some(self.index.clone()))
    }

    fn start(&self) -> Point {
        self.index.units[0]
    }

    fn offset(&self, at: u64) -> u64 {
        at >> 4
    }

    fn stream(&self, point: Point, _window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let check = Check::of([0, (point.at & 15) as u8], point.at >> 4)?;
        Ok(Box::new(blocks::Decoding::begin(Rc::clone(&self.below), point.at >> 4, check)?))
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    CRC32.checksum(bytes)
}

static CRC32: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISO_HDLC);

#[cfg(test)]
mod tests;
