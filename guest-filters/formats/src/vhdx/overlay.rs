//! An image as it will be when its log is replayed, without writing to it.
//!
//! The log replaces sectors of 4 KiB, and makes ranges zero. What it replaces stays in the log: an
//! overlay keeps only where each sector is, and the twelve bytes that the log has elsewhere.

use std::collections::BTreeMap;
use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source, read};

/// Bytes of a sector of the log, and of what it replaces.
pub const LOG_SECTOR: u64 = 4096;

/// At most so many ranges are kept: about 5 MiB. A log of the usual size, 1 MiB, has at most 255
/// sectors, or 32 766 ranges of zeroes.
const MOST_RANGES: usize = 1 << 16;

/// What the image has in a range instead of its own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// Zeroes.
    Zero,
    /// One sector. The log has it at this offset of the image, but for its first eight and its last
    /// four bytes.
    Sector { at: u64, first: [u8; 8], last: [u8; 4] },
}

/// An image under what its log has.
pub struct Overlay {
    image: Rc<dyn Source>,
    size: u64,
    /// Ranges that do not overlap, by where they begin: where each ends, and what it has.
    ranges: BTreeMap<u64, (u64, Replacement)>,
}

/// The longest run from an offset on that comes from one place.
enum OverlayRun {
    Image,
    Zero,
    /// From this byte of a sector on.
    Sector(Replacement, usize),
}

impl Overlay {
    /// The image as it is, with zeroes behind its end up to `size`.
    pub fn new(image: Rc<dyn Source>, size: u64) -> Overlay {
        Overlay { image, size, ranges: BTreeMap::new() }
    }

    /// Replaces a range. Later replacements hide earlier ones. `start` and `end` are multiples of
    /// 4096, and a sector has 4096 bytes.
    ///
    /// # Errors
    /// A line if there are too many ranges.
    pub fn replace(&mut self, start: u64, end: u64, with: Replacement) -> Result<(), Error> {
        // The only one that may begin before it and reach into it. It is of zeroes.
        let before = self.ranges.range(..start).next_back().map(|(start, (end, what))| (*start, *end, *what));
        if let Some((from, until, what)) = before.filter(|(_, until, _)| *until > start) {
            self.ranges.insert(from, (start, what));
            if until > end {
                self.ranges.insert(end, (until, what));
            }
        }
        while let Some((from, (until, what))) =
            self.ranges.range(start..end).next().map(|(from, range)| (*from, *range))
        {
            self.ranges.remove(&from);
            if until > end {
                self.ranges.insert(end, (until, what));
            }
        }
        self.ranges.insert(start, (end, with));
        if self.ranges.len() > MOST_RANGES {
            return Err(Error::image(format!("the log replaces more than {MOST_RANGES} ranges of the image")));
        }
        Ok(())
    }

    /// How many ranges are replaced.
    #[cfg(test)]
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// # Errors
    /// A line for a range that is not within the image.
    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::image(format!(
                "the image names {length} bytes at {offset}, and ends after {} bytes",
                self.size
            ))),
        }
    }

    /// Where the bytes from `offset` on come from, and for how many of `most` that holds.
    fn run(&self, offset: u64, most: u64) -> (OverlayRun, u64) {
        if let Some((start, (end, what))) = self.ranges.range(..=offset).next_back()
            && *end > offset
        {
            let run = match what {
                Replacement::Zero => OverlayRun::Zero,
                sector => OverlayRun::Sector(*sector, (offset - start) as usize),
            };
            return (run, most.min(end - offset));
        }
        let next = self.ranges.range(offset..).next().map_or(u64::MAX, |(start, _)| *start);
        let most = most.min(next - offset);
        match self.image.size().saturating_sub(offset) {
            // The log says that the image is longer.
            0 => (OverlayRun::Zero, most),
            there => (OverlayRun::Image, most.min(there)),
        }
    }

    /// The bytes of a sector that the log has.
    fn sector(&self, sector: Replacement) -> Result<Vec<u8>, Error> {
        let Replacement::Sector { at, first, last } = sector else { return Ok(vec![0; LOG_SECTOR as usize]) };
        let mut bytes = read(&*self.image, at, LOG_SECTOR as usize)?;
        bytes[..8].copy_from_slice(&first);
        bytes[LOG_SECTOR as usize - 4..].copy_from_slice(&last);
        Ok(bytes)
    }
}

impl Source for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        self.check(offset, into.len() as u64)?;
        while !into.is_empty() {
            let (run, length) = self.run(offset, into.len() as u64);
            let (part, rest) = into.split_at_mut(length as usize);
            match run {
                OverlayRun::Image => self.image.read(offset, part)?,
                OverlayRun::Zero => part.fill(0),
                OverlayRun::Sector(sector, skip) => {
                    part.copy_from_slice(&self.sector(sector)?[skip..skip + part.len()]);
                }
            }
            offset += length;
            into = rest;
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.check(offset, length.into())?;
        let mut done = 0;
        while done < length {
            let from = offset + u64::from(done);
            let (run, n) = self.run(from, (length - done).into());
            // At most what is left of `length`.
            let n = n as u32;
            let to = at + done;
            match run {
                OverlayRun::Image => self.image.read_buffer(from, n, buffer, to)?,
                OverlayRun::Zero => buffer.fill(to..to + n, 0),
                OverlayRun::Sector(sector, skip) => {
                    buffer.write(to, &self.sector(sector)?[skip..skip + n as usize]);
                }
            }
            done += n;
        }
        Ok(())
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        while !list.is_full() {
            let (offset, left) = (list.at(), list.left());
            let (run, length) = self.run(offset, left);
            match run {
                OverlayRun::Image => {
                    list.push_from(&*self.image, offset, length)?;
                    if list.at() < offset + length {
                        break;
                    }
                }
                OverlayRun::Zero => list.push_zero(length),
                OverlayRun::Sector(..) => list.push_data(length),
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check(offset, length)?;
        match length.min(self.image.size().saturating_sub(offset)) {
            0 => Ok(()),
            there => self.image.cache(offset, there),
        }
    }
}
