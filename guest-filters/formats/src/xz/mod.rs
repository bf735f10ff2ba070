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

use crate::unpack::{Codec, Index, Limits, Point, Storage, Stream, Unpacked, check_signature};
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

/// Opens an xz file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong or beyond the limits.
pub fn open(below: Rc<dyn Source>, storage: &Storage, limits: Limits) -> Result<Unpacked<Xz>, Error> {
    check_signature(&*below, "an xz file", &MAGIC)?;
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
