//! A logical volume as a source.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

/// At most so many pieces are looked at for one answer about extents. The client asks again for the
/// rest.
const MOST_PIECES: u32 = 1024;

/// A place on a physical volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// The number of the physical volume among those that the volume has.
    pub disk: usize,
    /// In bytes.
    pub at: u64,
}

/// A run of a logical volume, on one or more stripes. All numbers are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub size: u64,
    /// Where each stripe begins. There is at least one.
    pub stripes: Vec<Stripe>,
    /// The bytes of one stripe. Not 0.
    pub stripe: u64,
}

impl Segment {
    /// Where an offset of the volume is, and how many bytes follow there in a row.
    fn place(&self, offset: u64) -> (Stripe, u64) {
        let at = offset - self.start;
        let left = self.size - at;
        let count = self.stripes.len() as u64;
        let (number, within) = if count == 1 { (0, at) } else { (at / self.stripe, at % self.stripe) };
        let Stripe { disk, at } = self.stripes[(number % count) as usize];
        let place = Stripe { disk, at: at + number / count * self.stripe + within };
        (place, if count == 1 { left } else { left.min(self.stripe - within) })
    }
}

/// A logical volume.
pub struct Volume {
    disks: Vec<Rc<dyn Source>>,
    size: u64,
    segments: Vec<Segment>,
}

impl Volume {
    /// The segments follow each other from 0 on.
    pub fn new(disks: Vec<Rc<dyn Source>>, segments: Vec<Segment>) -> Volume {
        let size = segments.last().map_or(0, |last| last.start + last.size);
        Volume { disks, size, segments }
    }

    /// Calls `each` with (position in the range, physical volume, offset in it, length).
    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, &dyn Source, u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::image(format!("{length} bytes at {offset} are beyond the end of the volume, {}", self.size))
        })?;
        let mut at = offset;
        while at < end {
            let (place, run) = self.place(at);
            let run = run.min(end - at);
            each(at - offset, &*self.disks[place.disk], place.at, run)?;
            at += run;
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> (Stripe, u64) {
        let number = self.segments.partition_point(|segment| segment.start <= offset).saturating_sub(1);
        self.segments[number].place(offset)
    }
}

impl Source for Volume {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.pieces(offset, into.len() as u64, |at, disk, place, length| {
            disk.read(place, &mut into[at as usize..(at + length) as usize])
        })
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.pieces(offset, length.into(), |skip, disk, place, length| {
            disk.read_buffer(place, length as u32, buffer, at + skip as u32)
        })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        for _ in 0..MOST_PIECES {
            if list.is_full() {
                break;
            }
            let before = list.at();
            let (place, length) = self.place(before);
            list.push_from(&*self.disks[place.disk], place.at, length)?;
            if list.at() == before {
                list.push_data(length.min(list.left()));
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.pieces(offset, length, |_, disk, place, length| disk.cache(place, length))
    }
}
