//! bzip2 files: streams that follow each other, and zeroes at the end.
//!
//! A stream does not say how much data it has. The file is decoded once when it is opened. The
//! blocks of a stream can be decoded on their own. They begin at any bit. Decoding can resume where
//! a block begins.

mod blocks;
mod format;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use crate::unpack::{Codec, Point, RECENT, Storage, Stream, Unpacked, check_signature};
use crate::{FormatInfo, Opened, Report};
use blocks::Decoding;
use format::{BLOCK_MAGIC, END_MAGIC, MAGIC, WITHIN};

/// bzip2.
pub const INFO: FormatInfo = FormatInfo {
    name: "bzip2",
    probe,
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default())?)) },
};

/// "BZh" alone is too short to tell a file from others. A block follows, or the end.
fn probe(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < 14 {
        return Ok(false);
    }
    let start = read(below, 0, 10)?;
    let magic = start[4..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Ok(start.starts_with(MAGIC) && matches!(start[3], b'1'..=b'9') && [BLOCK_MAGIC, END_MAGIC].contains(&magic))
}

/// Opens a bzip2 file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong.
pub fn open(below: Rc<dyn Source>, storage: &Storage) -> Result<Unpacked<Bzip2>, Error> {
    check_signature(&*below, "a bzip2 file", MAGIC)?;
    Unpacked::open(Rc::clone(&below), Bzip2 { below }, storage, RECENT)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let digit = read(&**below, 3, 1)?[0];
    report.fact("block size", format!("{}00 kB", digit.wrapping_sub(b'0')));
    report.fact("compressed size", below.size());
    Ok(report)
}

/// The decoder of bzip2 files.
pub struct Bzip2 {
    below: Rc<dyn Source>,
}

impl Codec for Bzip2 {
    const NAME: &'static str = "bzip2";
    const MAX_UNIT: u64 = 0;
    /// Every block of `bzip2 -9`, which takes some 50 ms.
    const SPACING: u64 = 512 << 10;

    fn offset(&self, at: u64) -> u64 {
        at / 16
    }

    fn stream(&self, point: Point, _window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let (below, bit) = (Rc::clone(&self.below), point.at / 2);
        Ok(Box::new(match point.at & WITHIN {
            0 => Decoding::stream_at(below, bit / 8)?,
            _ => Decoding::block_at(below, bit)?,
        }))
    }
}

#[cfg(test)]
mod tests;
