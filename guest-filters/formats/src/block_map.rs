//! Images that are a map: tables say where each block of the disk is stored.
//!
//! A format implements [`BlockMap`], which looks one place up. [`MappedImage`] makes a source of
//! it: it reads neighbouring blocks with one request, and their bytes do not enter the guest.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};
use rbdkit_filter_sdk::{ExtentType, image};

/// One question about extents looks at most at so many places. The answer may then end early, and
/// the client asks again.
const MOST_PLACES: u32 = 1 << 16;

/// Where a block of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPlace {
    /// It is stored as it is, from this offset of [`BlockMap::stored_in`] on.
    Stored(u64),
    /// It is compressed: [`BlockMap::unpacked`] has it.
    Packed,
    /// It reads as zero, whatever the parent has there.
    Zero,
    /// The image does not have it. It is the parent's, and reads as zero without one.
    Absent,
}

/// Where the blocks of a disk are.
pub trait BlockMap {
    /// The size of the disk in bytes, at most 2^63 - 1.
    fn size(&self) -> u64;

    /// What has the blocks that are stored as they are.
    fn stored_in(&self) -> &dyn Source;

    /// Where the byte at `offset` is, and for how many bytes that holds: at least 1. It may be more
    /// than the disk has.
    ///
    /// # Errors
    /// Those of the source. A line if a table is wrong.
    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error>;

    /// The compressed block that has the byte at `offset`, and where in the block that byte is. The
    /// block is at least as long as [`place`](BlockMap::place) says.
    ///
    /// # Errors
    /// Those of the source. A line if the block is wrong.
    fn unpacked(&self, offset: u64) -> Result<(Rc<Vec<u8>>, usize), Error> {
        Err(Error::image(format!("the block at {offset} is compressed")))
    }

    /// The disk that has what this image does not have, and the offset in it at which this image
    /// begins.
    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        None
    }

    /// Whether every block has its place since the image was made. Then zeroes among them are those
    /// that the source knows of.
    fn is_fixed(&self) -> bool {
        false
    }

    /// For people.
    fn description(&self) -> Option<String>;
}

/// An image as a source.
pub struct MappedImage<L>(pub L);

/// Where the bytes of one run come from.
enum RunSource<'a> {
    At(&'a dyn Source, u64),
    Packed,
    Zero,
}

impl<L: BlockMap> MappedImage<L> {
    /// # Errors
    /// A line for a range that is not within the disk.
    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        let size = self.0.size();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::image(format!("{length} bytes at {offset} are not within the disk of {size} bytes"))),
        }
    }

    /// The longest run from `offset` on, of at most `most` bytes.
    fn run(&self, offset: u64, most: u64) -> Result<(RunSource<'_>, u64), Error> {
        let (place, length) = self.0.place(offset)?;
        let mut length = length.min(most);
        while length < most && place != BlockPlace::Packed {
            // A wrong table stops the run. It is an error when the next run begins there.
            let Ok((next, more)) = self.0.place(offset + length) else { break };
            let goes_on = match (place, next) {
                (BlockPlace::Stored(at), BlockPlace::Stored(next)) => at.checked_add(length) == Some(next),
                (place, next) => place == next,
            };
            if !goes_on {
                break;
            }
            length += more.min(most - length);
        }
        Ok(match place {
            BlockPlace::Stored(at) => (RunSource::At(self.0.stored_in(), at), length),
            BlockPlace::Packed => (RunSource::Packed, length),
            BlockPlace::Zero => (RunSource::Zero, length),
            BlockPlace::Absent => self.of_parent(offset, length),
        })
    }

    /// What a range that the image does not have is read from, and how much of it.
    fn of_parent(&self, offset: u64, length: u64) -> (RunSource<'_>, u64) {
        let Some((parent, start)) = self.0.parent() else { return (RunSource::Zero, length) };
        let at = start.saturating_add(offset);
        match parent.size().saturating_sub(at) {
            // The parent is smaller than the image.
            0 => (RunSource::Zero, length),
            there => (RunSource::At(&**parent, at), length.min(there)),
        }
    }

    /// Appends a range that is stored in a fixed image: it is allocated, and zero where the source
    /// knows so.
    fn push_fixed(&self, list: &mut ExtentList, at: u64, length: u64) -> Result<(), Error> {
        let mut below = ExtentList::new(at, length);
        self.0.stored_in().extents(&mut below)?;
        let mut left = length;
        for extent in below.into_answer()? {
            let wanted = extent.length.min(left);
            list.push(wanted, extent.kind & ExtentType::ZERO);
            left -= wanted;
        }
        Ok(())
    }

    /// Appends what is at the end of the list.
    fn push_place(&self, list: &mut ExtentList) -> Result<(), Error> {
        let offset = list.at();
        let (place, length) = self.0.place(offset)?;
        let length = length.min(list.left());
        match place {
            BlockPlace::Stored(at) if self.0.is_fixed() => return self.push_fixed(list, at, length),
            BlockPlace::Stored(_) | BlockPlace::Packed => list.push_data(length),
            BlockPlace::Zero => list.push_hole(length),
            BlockPlace::Absent => match self.of_parent(offset, length) {
                (RunSource::At(parent, at), length) => return list.push_from(parent, at, length),
                (_, length) => list.push_hole(length),
            },
        }
        Ok(())
    }
}

impl<L: BlockMap> Source for MappedImage<L> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        self.check(offset, into.len() as u64)?;
        while !into.is_empty() {
            let (from, length) = self.run(offset, into.len() as u64)?;
            let (part, rest) = into.split_at_mut(length as usize);
            match from {
                RunSource::At(source, at) => source.read(at, part)?,
                RunSource::Zero => part.fill(0),
                RunSource::Packed => {
                    let (block, skip) = self.0.unpacked(offset)?;
                    part.copy_from_slice(&block[skip..skip + part.len()]);
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
            let offset = offset + u64::from(done);
            let (from, run) = self.run(offset, (length - done).into())?;
            // At most what is left of `length`.
            let run = run as u32;
            let to = at + done;
            match from {
                RunSource::At(source, from) => source.read_buffer(from, run, buffer, to)?,
                RunSource::Zero => buffer.fill(to..to + run, 0),
                RunSource::Packed => {
                    let (block, skip) = self.0.unpacked(offset)?;
                    buffer.write(to, &block[skip..skip + run as usize]);
                }
            }
            done += run;
        }
        Ok(())
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.check(list.at(), list.left())?;
        let start = list.at();
        let mut places = MOST_PLACES;
        while !list.is_full() && places > 0 {
            places -= 1;
            match self.push_place(list) {
                // The client gets what was right, and the error when it asks for the rest.
                Err(Error::Image(_)) if list.at() > start => break,
                result => result?,
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check(offset, length)?;
        let (mut offset, end, mut runs) = (offset, offset + length, MOST_PLACES);
        while offset < end && runs > 0 {
            runs -= 1;
            let (from, length) = self.run(offset, end - offset)?;
            if let RunSource::At(source, at) = from {
                source.cache(at, length)?;
            }
            offset += length;
        }
        Ok(())
    }

    fn description(&self) -> Option<String> {
        self.0.description()
    }
}

/// A cache for the tables of one image: 512 KiB.
pub(crate) fn table_cache(source: &Rc<dyn Source>) -> image::BlockCache {
    image::BlockCache::new(Rc::clone(source), 16 << 10, 512 << 10)
}

/// # Errors
/// A line if a table does not lie within the image. `what` names the table: "the block map".
pub(crate) fn check_table(source: &dyn Source, what: &str, offset: u64, length: u64) -> Result<(), Error> {
    match offset.checked_add(length) {
        Some(end) if end <= source.size() => Ok(()),
        _ => Err(Error::image(format!(
            "{what} of {length} bytes is at {offset}, and the image ends after {} bytes",
            source.size()
        ))),
    }
}

/// # Errors
/// A line if a block begins behind the image. `what` names the block: "block 5".
pub(crate) fn check_block(source: &dyn Source, what: impl Fn() -> String, at: u64) -> Result<(), Error> {
    if at < source.size() {
        return Ok(());
    }
    Err(Error::image(format!("{} is at {at}, and the image ends after {} bytes", what(), source.size())))
}

#[cfg(test)]
mod tests;
