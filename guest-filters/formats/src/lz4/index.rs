//! The frames of a file, if they all say how much data they have.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

use super::blocks::STORED;
use super::frame::{self, Frame, MAX_UNIT};
use crate::unpack::{Index, Input, MAX_UNITS, Point};

/// Goes over the frames without decoding them. None if one does not say how much data it has, has
/// too much for a request, or is wrong: then the file is decoded once, and that says what is wrong.
pub(super) fn frames(below: &Rc<dyn Source>) -> Result<Option<Index>, Error> {
    let mut input = Input::new(Rc::clone(below), 0);
    match walk(&mut input) {
        Ok(index) => Ok(index),
        Err(Error::Image(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn walk(input: &mut Input) -> Result<Option<Index>, Error> {
    let mut index = Index::default();
    while let Some(frame) = frame::next(input)? {
        let Some(size) = frame.content_size.filter(|size| *size <= MAX_UNIT) else { return Ok(None) };
        if index.units.len() == MAX_UNITS {
            return Ok(None);
        }
        if size > 0 {
            index.units.push(Point { out: index.size, at: frame.at << 8 });
            index.size += size;
        }
        skip(input, &frame)?;
    }
    Ok(Some(index).filter(|index| !index.units.is_empty()))
}

/// Goes over the blocks of a frame.
fn skip(input: &mut Input, frame: &Frame) -> Result<(), Error> {
    loop {
        let word = u32::from_le_bytes(input.array("the size of an lz4 block")?);
        if word == 0 {
            break;
        }
        let checksum = if frame.kind.has_block_checksums() { 4 } else { 0 };
        input.go_to(input.at() + u64::from(word & !STORED) + checksum);
    }
    if frame.kind.has_checksum() {
        input.array::<4>("the checksum of an lz4 frame")?;
    }
    Ok(())
}
