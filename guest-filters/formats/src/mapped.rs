//! Images that are a map: tables say where each block of the disk is stored.
//!
//! A format implements [`Layout`], which looks one place up. [`MappedImage`] makes a source of it:
//! it reads neighbouring blocks with one request, and their bytes do not enter the guest.
//! A file that lies in pieces in the source below: a file of a file system.
//! A decoder says where each piece is. Bytes of the file then go from the source to the buffer of
//! the request, and do not enter the guest.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};
use rbdkit_filter_sdk::{ExtentType, image};

/// One question about extents looks at most at so many places. The answer may then end early, and
/// the client asks again.
const MOST_PLACES: u32 = 1 << 16;

/// Where a block of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is stored as it is, from this offset of [`Layout::stored_in`] on.
    Stored(u64),
    /// It is compressed: [`Layout::unpacked`] has it.
    Packed,
    /// It reads as zero, whatever the parent has there.
    Zero,
    /// The image does not have it. It is the parent's, and reads as zero without one.
    Absent,
}

/// Where the blocks of a disk are.
pub trait Layout {
    /// The size of the disk in bytes, at most 2^63 - 1.
    fn size(&self) -> u64;

    /// What has the blocks that are stored as they are.
    fn stored_in(&self) -> &dyn Source;

    /// Where the byte at `offset` is, and for how many bytes that holds: at least 1. It may be more
    /// than the disk has.
    ///
    /// # Errors
    /// Those of the source. A line if a table is wrong.
    fn place(&self, offset: u64) -> Result<(Place, u64), Error>;

    /// The compressed block that has the byte at `offset`, and where in the block that byte is. The
    /// block is at least as long as [`place`](Layout::place) says.
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
enum From<'a> {
    Source(&'a dyn Source, u64),
    Packed,
    Zero,
}

impl<L: Layout> MappedImage<L> {
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
    fn run(&self, offset: u64, most: u64) -> Result<(From<'_>, u64), Error> {
        let (place, length) = self.0.place(offset)?;
        let mut length = length.min(most);
        while length < most && place != Place::Packed {
            // A wrong table stops the run. It is an error when the next run begins there.
            let Ok((next, more)) = self.0.place(offset + length) else { break };
            let goes_on = match (place, next) {
                (Place::Stored(at), Place::Stored(next)) => at.checked_add(length) == Some(next),
                (place, next) => place == next,
            };
            if !goes_on {
                break;
            }
            length += more.min(most - length);
        }
        Ok(match place {
            Place::Stored(at) => (From::Source(self.0.stored_in(), at), length),
            Place::Packed => (From::Packed, length),
            Place::Zero => (From::Zero, length),
            Place::Absent => self.of_parent(offset, length),
        })
    }

    /// What a range that the image does not have is read from, and how much of it.
    fn of_parent(&self, offset: u64, length: u64) -> (From<'_>, u64) {
        let Some((parent, start)) = self.0.parent() else { return (From::Zero, length) };
        let at = start.saturating_add(offset);
        match parent.size().saturating_sub(at) {
            // The parent is smaller than the image.
            0 => (From::Zero, length),
            there => (From::Source(&**parent, at), length.min(there)),
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
            Place::Stored(at) if self.0.is_fixed() => return self.push_fixed(list, at, length),
            Place::Stored(_) | Place::Packed => list.push_data(length),
            Place::Zero => list.push_hole(length),
            Place::Absent => match self.of_parent(offset, length) {
                (From::Source(parent, at), length) => return list.push_from(parent, at, length),
                (_, length) => list.push_hole(length),
            },
        }
        Ok(())
    }
}

impl<L: Layout> Source for MappedImage<L> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        self.check(offset, into.len() as u64)?;
        while !into.is_empty() {
            let (from, length) = self.run(offset, into.len() as u64)?;
            let (part, rest) = into.split_at_mut(length as usize);
            match from {
                From::Source(source, at) => source.read(at, part)?,
                From::Zero => part.fill(0),
                From::Packed => {
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
                From::Source(source, from) => source.read_buffer(from, run, buffer, to)?,
                From::Zero => buffer.fill(to..to + run, 0),
                From::Packed => {
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
/// At most so many pieces are looked at for one answer about extents. The client asks again for
/// the rest.
const MOST_PIECES: u32 = 1024;
/// Where a piece of a file is.
    /// From this offset of the source on.
    At(u64),
    /// Nowhere. It reads as zero.
    Hole,
    /// There is room for it, and nothing was written there: it reads as zero.
    Unwritten,
/// A piece of a file.
pub struct Run {
    /// In bytes, at least 1.
    pub length: u64,
    /// Where it is.
    pub place: Place,
/// Where the pieces of a file are.
pub trait Runs {
    /// The file's size in bytes.
    /// The piece from `offset` on, which is within the size. It may reach beyond the size.
    /// Those of the source, and a line if the file system is wrong.
    fn run(&self, offset: u64) -> Result<Run, Error>;
/// A file.
pub struct Mapped<R> {
    below: Rc<dyn Source>,
    runs: R,
    description: Option<String>,
impl<R: Runs> Mapped<R> {
    /// A file in `below`.
    pub fn new(below: Rc<dyn Source>, runs: R) -> Mapped<R> {
        Mapped { below, runs, description: None }
    /// The same file with a description for people.
    pub fn described(mut self, text: String) -> Mapped<R> {
        self.description = Some(text);
        self
    /// The piece from `offset` on, at most `most` bytes. Neighbours that are together below become
    /// one.
    /// Those of [`Runs::run`]; a line if the range is not within the size.
    pub fn run(&self, offset: u64, most: u64) -> Result<Run, Error> {
        if offset.checked_add(most).is_none_or(|end| end > self.runs.size()) || most == 0 {
            let size = self.runs.size();
            return Err(Error::image(format!("{most} bytes at {offset} of a file of {size} bytes")));
        let mut run = self.runs.run(offset)?;
        for _ in 0..MOST_PIECES {
            if run.length >= most {
            let more = self.runs.run(offset + run.length)?;
            let follows = match (run.place, more.place) {
                (Place::At(at), Place::At(next)) => at.checked_add(run.length) == Some(next),
                (one, other) => one == other,
            if !follows {
            run.length = run.length.saturating_add(more.length);
        run.length = run.length.min(most);
        Ok(run)
    /// Calls `each` with every piece of a range: its offset in the file, and the piece.
    /// Those of [`run`](Mapped::run) and of `each`.
    pub fn each<E: From<Error>>(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, Run) -> Result<(), E>,
    ) -> Result<(), E> {
            let run = self.run(offset.saturating_add(done), length - done)?;
            each(offset + done, run)?;
            done += run.length;
impl<R: Runs> Source for Mapped<R> {
        self.runs.size()
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        if into.is_empty() && offset <= self.size() {
            return Ok(());
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > self.size()) {
            self.run(offset, into.len() as u64)?;
        self.each(offset, into.len() as u64, |at, run| {
            let start = (at - offset) as usize;
            let part = &mut into[start..start + run.length as usize];
            match run.place {
                Place::At(below) => self.below.read(below, part),
                Place::Hole | Place::Unwritten => {
                    part.fill(0);
                    Ok(())
        self.each(offset, length.into(), |place, run| {
            // A piece is not longer than the request.
            let (start, length) = (at + (place - offset) as u32, run.length as u32);
            match run.place {
                Place::At(below) => self.below.read_buffer(below, length, buffer, start)?,
                Place::Hole | Place::Unwritten => buffer.fill(start..start + length, 0),
            Ok(())
        for _ in 0..MOST_PIECES {
            if list.is_full() {
            let run = self.run(list.at(), list.left())?;
            match run.place {
                // What is not there below cannot be read. The read says so.
                Place::At(below) if below.checked_add(run.length).is_none_or(|end| end > self.below.size()) => {
                    list.push_data(run.length);
                Place::At(below) => {
                    let before = list.at();
                    list.push_from(&*self.below, below, run.length)?;
                    if list.at() == before {
                        list.push_data(run.length);
                    }
                Place::Hole => list.push_hole(run.length),
                Place::Unwritten => list.push_zero(run.length),
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
            if let From::Source(source, at) = from {
                source.cache(at, length)?;
            }
            offset += length;
        let mut done = 0;
        for _ in 0..MOST_PIECES {
            if done >= length {
                break;
            let run = self.run(offset.saturating_add(done), length - done)?;
            if let Place::At(below) = run.place {
                self.below.cache(below, run.length)?;
            done += run.length;
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
        self.description.clone()
mod tests {
    use rbdkit_filter_sdk::ExtentType;
    use super::*;
    /// Pieces of 10 bytes, in the order that the list gives them.
    struct Pieces(Vec<Place>);
    impl Runs for Pieces {
        fn size(&self) -> u64 {
            10 * self.0.len() as u64 - 5
        }
        fn run(&self, offset: u64) -> Result<Run, Error> {
            let (piece, skip) = (offset / 10, offset % 10);
            let place = match self.0[piece as usize] {
                Place::At(at) => Place::At(at + skip),
                other => other,
            };
            Ok(Run { length: 10 - skip, place })
        }
    fn file(places: &[Place]) -> Mapped<Pieces> {
        Mapped::new(Rc::new((0..100).collect::<Vec<u8>>()), Pieces(places.to_vec()))
    #[test]
    fn neighbours_are_read_at_once_and_holes_are_zero() {
        let file = file(&[Place::At(20), Place::At(30), Place::Hole, Place::Unwritten, Place::At(0)]);
        assert_eq!(file.run(3, 40), Ok(Run { length: 17, place: Place::At(23) }));
        let mut bytes = vec![1; 45];
        file.read(0, &mut bytes).unwrap();
        let expected: Vec<u8> = (20..40).chain([0; 20]).chain(0..5).collect();
        assert_eq!(bytes, expected);
        assert!(file.read(44, &mut [0; 2]).is_err());
        assert!(file.read(u64::MAX, &mut [0; 2]).is_err());
        let mut list = ExtentList::new(5, 40);
        file.extents(&mut list).unwrap();
        let kinds: Vec<_> = list.into_answer().unwrap().iter().map(|extent| (extent.length, extent.kind)).collect();
        let data = ExtentType::empty();
        let expected = [(15, data), (10, ExtentType::HOLE | ExtentType::ZERO), (10, ExtentType::ZERO), (5, data)];
        assert_eq!(kinds, expected);
    #[test]
    fn a_piece_beyond_the_end_of_the_source_is_data_that_cannot_be_read() {
        let file = file(&[Place::At(95), Place::Hole]);
        let line = "the image names 10 bytes at 95, and ends after 100 bytes";
        assert_eq!(file.read(0, &mut [0; 12]), Err(Error::image(line)));
        let mut list = ExtentList::new(0, 10);
        file.extents(&mut list).unwrap();
        assert_eq!(list.into_answer().unwrap()[0].kind, ExtentType::empty());
