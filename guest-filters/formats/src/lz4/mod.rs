//! lz4 files: frames that follow each other, also legacy frames, and frames that are skipped.
//!
//! A frame does not say how long it is. Files whose frames all say how much data they have, and
//! have little, are read frame by frame; their blocks are counted when the file is opened. All
//! others are decoded once. Decoding can resume at the blocks of a frame.

mod blocks;
mod frame;
mod index;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

use crate::unpack::frames::{check_first, first_magic};
use crate::unpack::{Codec, Index, Input, Limits, Point, RECENT, Storage, Stream, Unpacked};
use crate::{FormatInfo, Opened, Report};
use frame::{Kind, LEGACY_MAGIC, MAGIC, MAGICS, MAX_UNIT, WINDOW};

/// lz4.
pub const INFO: FormatInfo = FormatInfo {
    name: "lz4",
    probe: |below| Ok(matches!(first_magic(below)?, Some(MAGIC | LEGACY_MAGIC))),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default())?)) },
};

/// Opens an lz4 file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong.
pub fn open(below: Rc<dyn Source>, storage: &Storage) -> Result<Unpacked<Lz4>, Error> {
    check_first(&*below, "an lz4 file", &MAGICS)?;
    let index = index::frames(&below)?;
    let recent = index.as_ref().map_or(Ok(RECENT), |index| Limits::default().check("frame", index))?;
    Unpacked::open(Rc::clone(&below), Lz4 { below, index }, storage, recent)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut input = Input::new(Rc::clone(below), 0);
    if let Some(frame) = frame::next(&mut input)? {
        report.fact("frames", if frame.kind.is_legacy() { "legacy" } else { "version 1" });
        report.fact("block size", frame.kind.max_block());
        if let Some(size) = frame.content_size {
            report.fact("size of the first frame", size);
        }
    }
    report.fact("compressed size", below.size());
    Ok(report)
}

/// The decoder of lz4 files.
pub struct Lz4 {
    below: Rc<dyn Source>,
    index: Option<Index>,
}

impl Codec for Lz4 {
    const NAME: &'static str = "lz4";
    const MAX_UNIT: u64 = MAX_UNIT;
    const WINDOW: u32 = WINDOW as u32;

    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(self.index.clone())
    }

    fn offset(&self, at: u64) -> u64 {
        Kind::split(at).0
    }

    fn stream(&self, point: Point, window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let (offset, kind) = Kind::split(point.at);
        let input = Input::new(Rc::clone(&self.below), offset);
        Ok(Box::new(match kind {
            None => blocks::Decoding::frame(input)?,
            Some(kind) => blocks::Decoding::within(input, kind, window),
        }))
    }
}

#[cfg(test)]
mod tests;
