//! xz files: streams that follow each other, with zeroes between them. Each stream ends with an
//! index of its blocks. So the blocks are found from the end of the file, without decoding.

mod blocks;
mod format;
mod index;
mod piece;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use format::{Check, MAGIC};
pub use piece::unxz;

use crate::unpack::{CHUNK, Codec, Index, Point, Storage, Stream, Unpacked};
use crate::{FormatInfo, Opened, Report};

/// xz.
pub const INFO: FormatInfo = FormatInfo {
    name: "xz",
    probe: |below| Ok(below.size() >= 32 && read(below, 0, 6)? == MAGIC),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default(), Limits::default())?)) },
};

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

#[cfg(test)]
mod tests;
