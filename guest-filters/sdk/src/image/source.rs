//! What a decoder reads, and what it is.

use std::rc::Rc;

use super::{Error, ExtentList};
use crate::buffer::Bytes;

/// How many bytes [`Source::read_buffer`] takes through the guest at once, if the source does not
/// do better.
const PIECE: u32 = 256 << 10;

/// Bytes that can be read at any offset: the layer below, or what a decoder makes of another
/// source.
pub trait Source {
    /// In bytes. It does not change.
    fn size(&self) -> u64;

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Image`] for a range that is not within the size; a decoder passes offsets on that
    /// an image names. Those of the source.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error>;

    /// Reads `length` bytes from `offset` on into a buffer of the host, from position `at` on. A
    /// source whose bytes need not enter the guest has a method of its own.
    ///
    /// # Errors
    /// Those of [`read`](Source::read).
    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        let mut piece = vec![0; length.min(PIECE) as usize];
        let mut done = 0;
        while done < length {
            let part = &mut piece[..(length - done).min(PIECE) as usize];
            self.read(offset.saturating_add(done.into()), part)?;
            buffer.write(at + done, part);
            done += part.len() as u32;
        }
        Ok(())
    }

    /// Appends what is known of the rest of the range. The range lies within the size. By default
    /// all of it is data.
    ///
    /// # Errors
    /// Those of the source.
    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        list.push_data(list.left());
        Ok(())
    }

    /// Asks the sources below to cache what a read of this range needs. Advisory.
    ///
    /// # Errors
    /// Those of the source.
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let _ = (offset, length);
        Ok(())
    }

    /// For people: the format, and what is worth knowing of the image.
    fn description(&self) -> Option<String> {
        None
    }
}

impl<S: Source + ?Sized> Source for Rc<S> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        (**self).read(offset, into)
    }
    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        (**self).read_buffer(offset, length, buffer, at)
    }
    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        (**self).extents(list)
    }
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        (**self).cache(offset, length)
    }
    fn description(&self) -> Option<String> {
        (**self).description()
    }
}

/// `length` bytes from `offset` on. `length` has to have a bound of the decoder's: it is allocated.
///
/// # Errors
/// Those of [`Source::read`].
pub fn read(source: &dyn Source, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
    check_range(source, offset, length as u64)?;
    let mut bytes = vec![0; length];
    source.read(offset, &mut bytes)?;
    Ok(bytes)
}

/// # Errors
/// A line if a range is not within the size of the source.
pub(super) fn check_range(source: &dyn Source, offset: u64, length: u64) -> Result<(), Error> {
    match offset.checked_add(length) {
        Some(end) if end <= source.size() => Ok(()),
        _ => Err(Error::Image(format!(
            "the image names {length} bytes at {offset}, and ends after {} bytes",
            source.size()
        ))),
    }
}

/// Bytes in memory, for tests.
impl Source for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        check_range(self, offset, into.len() as u64)?;
        let start = offset as usize;
        into.copy_from_slice(&self[start..start + into.len()]);
        Ok(())
    }
}

impl ExtentList {
    /// Appends the extents that `source` has of `length` bytes from `from` on. It may know fewer.
    /// Then they end where its list does, and [`at`](ExtentList::at) says where.
    ///
    /// # Errors
    /// Those of the source.
    pub fn push_from(&mut self, source: &dyn Source, from: u64, length: u64) -> Result<(), Error> {
        let length = length.min(self.left());
        let mut part = ExtentList::new(from, length).only_one(self.one);
        source.extents(&mut part)?;
        let mut left = length;
        for extent in part.list {
            let wanted = extent.length.min(left);
            self.push(wanted, extent.kind);
            left -= wanted;
        }
        Ok(())
    }
}

/// A part of a source that is a source: a partition, a member of an archive that is stored as it
/// is.
pub struct Part {
    whole: Rc<dyn Source>,
    start: u64,
    size: u64,
}

impl Part {
    /// Where the part begins in the whole, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// `size` bytes from `start` on.
    ///
    /// # Errors
    /// A line if they are not within the source.
    pub fn new(whole: Rc<dyn Source>, start: u64, size: u64) -> Result<Part, Error> {
        check_range(&*whole, start, size)?;
        Ok(Part { whole, start, size })
    }

    /// The offset in the whole. Errors for a range that is not within the part.
    fn inside(&self, offset: u64, length: u64) -> Result<u64, Error> {
        check_range(self, offset, length)?;
        Ok(self.start + offset)
    }
}

impl Source for Part {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.whole.read(self.inside(offset, into.len() as u64)?, into)
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.whole.read_buffer(self.inside(offset, length.into())?, length, buffer, at)
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        let (offset, length) = (list.at(), list.left());
        list.push_from(&*self.whole, self.inside(offset, length)?, length)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.whole.cache(self.inside(offset, length)?, length)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Extent, ExtentType};

    use super::*;

    #[test]
    fn a_part_ends_where_it_says() {
        let whole: Rc<dyn Source> = Rc::new((0..100).collect::<Vec<u8>>());
        let part = Part::new(Rc::clone(&whole), 10, 20).unwrap();
        assert_eq!(read(&part, 5, 3), Ok(vec![15, 16, 17]));
        assert_eq!(read(&part, 18, 3), Err(Error::image("the image names 3 bytes at 18, and ends after 20 bytes")));
        assert!(Part::new(Rc::clone(&whole), 90, 11).is_err());
        assert!(Part::new(whole, 1, u64::MAX).is_err());
    }

    #[test]
    fn extents_of_another_source_are_moved_and_cut() {
        let below = vec![0; 100];
        let mut list = ExtentList::new(1000, 50);
        list.push_from(&below, 20, 30).unwrap();
        assert_eq!(list.at(), 1030);
        list.push_from(&below, 0, 100).unwrap();
        assert_eq!(list.into_answer().unwrap(), [Extent { offset: 1000, length: 50, kind: ExtentType::empty() }]);
    }
}
