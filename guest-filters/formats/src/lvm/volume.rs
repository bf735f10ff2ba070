//! A logical volume as a source.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

/// A run of a logical volume, on one or more stripes. All numbers are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub size: u64,
    /// Where each stripe begins in the physical volume. There is at least one.
    pub stripes: Vec<u64>,
    /// The bytes of one stripe. Not 0.
    pub stripe: u64,
}

impl Segment {
    /// Where an offset of the volume is, and how many bytes follow there in a row.
    fn place(&self, offset: u64) -> (u64, u64) {
        let at = offset - self.start;
        let left = self.size - at;
        let count = self.stripes.len() as u64;
        if count == 1 {
            return (self.stripes[0] + at, left);
        }
        let (number, within) = (at / self.stripe, at % self.stripe);
        let place = self.stripes[(number % count) as usize] + number / count * self.stripe + within;
        (place, left.min(self.stripe - within))
    }
}

/// A logical volume.
pub struct Volume {
    physical: Rc<dyn Source>,
    size: u64,
    segments: Vec<Segment>,
}

impl Volume {
    /// The segments follow each other from 0 on.
    pub fn new(physical: Rc<dyn Source>, segments: Vec<Segment>) -> Volume {
        let size = segments.last().map_or(0, |last| last.start + last.size);
        Volume { physical, size, segments }
    }

    /// Calls `each` with (position in the range, offset in the physical volume, length).
    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::image(format!("{length} bytes at {offset} are beyond the end of the volume, {}", self.size))
        })?;
        let mut at = offset;
        while at < end {
            let (place, run) = self.place(at);
            let run = run.min(end - at);
            each(at - offset, place, run)?;
            at += run;
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> (u64, u64) {
        let number = self.segments.partition_point(|segment| segment.start <= offset).saturating_sub(1);
        self.segments[number].place(offset)
    }
}

impl Source for Volume {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.pieces(offset, into.len() as u64, |at, place, length| {
            self.physical.read(place, &mut into[at as usize..(at + length) as usize])
        })
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.pieces(offset, length.into(), |skip, place, length| {
            self.physical.read_buffer(place, length as u32, buffer, at + skip as u32)
        })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        while !list.is_full() {
            let (place, length) = self.place(list.at());
            list.push_from(&*self.physical, place, length)?;
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.pieces(offset, length, |_, place, length| self.physical.cache(place, length))
    }
}
