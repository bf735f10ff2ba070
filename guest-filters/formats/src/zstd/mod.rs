//! zstd files (RFC 8878): frames that follow each other, and frames that are skipped.
//!
//! The frames are known without decoding if the file ends with a seek table, as the seekable format
//! of zstd has it, or if every frame says how much data it has. Then each is decoded when it is
//! needed. Other files, and files with a large frame, are decoded once when they are opened.

mod frames;
mod header;
mod index;
mod options;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

use crate::unpack::frames::{check_first, first_magic};
use crate::unpack::{Codec, Index, Input, Point, RECENT, Storage, Stream, Unpacked};
use crate::{FormatInfo, Opened, Report};
use header::MAGIC;
use index::Checksums;
use options::MAX_UNIT;
pub use options::Options;

/// zstd.
pub const INFO: FormatInfo = FormatInfo {
    name: "zstd",
    probe: |below| Ok(first_magic(below)? == Some(MAGIC)),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default(), Options::default())?)) },
};

/// Opens a zstd file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong or beyond the limits.
pub fn open(below: Rc<dyn Source>, storage: &Storage, options: Options) -> Result<Unpacked<Zstd>, Error> {
    check_first(&*below, "a zstd file", &[MAGIC])?;
    let (index, checksums) = index::frames(&below)?;
    let recent = index.as_ref().map_or(Ok(RECENT), |index| options.limits.check("frame", index))?;
    Unpacked::open(Rc::clone(&below), Zstd { below, index, checksums, options }, storage, recent)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    if let Some((index, frames)) = index::seek_table_size(below)? {
        report.size = Some(index);
        report.fact("frames in the seek table", frames);
    }
    if let Some(frame) = header::next(&mut Input::new(Rc::clone(below), 0))? {
        report.fact("window", frame.window);
        if let Some(size) = frame.content_size {
            report.fact("size of the first frame", size);
        }
        if frame.dictionary != 0 {
            report.fact("dictionary", frame.dictionary);
        }
    }
    report.fact("compressed size", below.size());
    Ok(report)
}

/// The decoder of zstd files.
pub struct Zstd {
    below: Rc<dyn Source>,
    index: Option<Index>,
    checksums: Checksums,
    options: Options,
}

impl Codec for Zstd {
    const NAME: &'static str = "zstd";
    const MAX_UNIT: u64 = MAX_UNIT;

    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(self.index.clone())
    }

    fn offset(&self, at: u64) -> u64 {
        at
    }

    fn stream(&self, point: Point, _window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let input = Input::new(Rc::clone(&self.below), point.at);
        let largest = self.index.as_ref().map_or(u64::MAX, Index::largest);
        Ok(Box::new(frames::Decoding::begin(input, self.options, Rc::clone(&self.checksums), largest)?))
    }
}

#[cfg(test)]
mod tests;
