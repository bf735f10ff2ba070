//! A file that lies in pieces in the source below: a file of a file system.
//!
//! A decoder says where each piece is. Bytes of the file then go from the source to the buffer of
//! the request, and do not enter the guest.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

/// At most so many pieces are looked at for one answer about extents. The client asks again for
/// the rest.
const MOST_PIECES: u32 = 1024;

/// Where a piece of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// From this offset of the source on.
    At(u64),
    /// Nowhere. It reads as zero.
    Hole,
    /// There is room for it, and nothing was written there: it reads as zero.
    Unwritten,
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In bytes, at least 1.
    pub length: u64,
    /// Where it is.
    pub place: Place,
}

/// Where the pieces of a file are.
pub trait Runs {
    /// The file's size in bytes.
    fn size(&self) -> u64;

    /// The piece from `offset` on, which is within the size. It may reach beyond the size.
    ///
    /// # Errors
    /// Those of the source, and a line if the file system is wrong.
    fn run(&self, offset: u64) -> Result<Run, Error>;
}

/// A file.
pub struct Mapped<R> {
    below: Rc<dyn Source>,
    runs: R,
    description: Option<String>,
}

impl<R: Runs> Mapped<R> {
    /// A file in `below`.
    pub fn new(below: Rc<dyn Source>, runs: R) -> Mapped<R> {
        Mapped { below, runs, description: None }
    }

    /// The same file with a description for people.
    pub fn described(mut self, text: String) -> Mapped<R> {
        self.description = Some(text);
        self
    }

    /// The piece from `offset` on, at most `most` bytes. Neighbours that are together below become
    /// one.
    ///
    /// # Errors
    /// Those of [`Runs::run`]; a line if the range is not within the size.
    pub fn run(&self, offset: u64, most: u64) -> Result<Run, Error> {
        if offset.checked_add(most).is_none_or(|end| end > self.runs.size()) || most == 0 {
            let size = self.runs.size();
            return Err(Error::image(format!("{most} bytes at {offset} of a file of {size} bytes")));
        }
        let mut run = self.runs.run(offset)?;
        for _ in 0..MOST_PIECES {
            if run.length >= most {
                break;
            }
            let more = self.runs.run(offset + run.length)?;
            let follows = match (run.place, more.place) {
                (Place::At(at), Place::At(next)) => at.checked_add(run.length) == Some(next),
                (one, other) => one == other,
            };
            if !follows {
                break;
            }
            run.length = run.length.saturating_add(more.length);
        }
        run.length = run.length.min(most);
        Ok(run)
    }

    /// Calls `each` with every piece of a range: its offset in the file, and the piece.
    ///
    /// # Errors
    /// Those of [`run`](Mapped::run) and of `each`.
    pub fn each(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, Run) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < length {
            let run = self.run(offset.saturating_add(done), length - done)?;
            each(offset + done, run)?;
            done += run.length;
        }
        Ok(())
    }
}

impl<R: Runs> Source for Mapped<R> {
    fn size(&self) -> u64 {
        self.runs.size()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        if into.is_empty() && offset <= self.size() {
            return Ok(());
        }
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > self.size()) {
            self.run(offset, into.len() as u64)?;
        }
        self.each(offset, into.len() as u64, |at, run| {
            let start = (at - offset) as usize;
            let part = &mut into[start..start + run.length as usize];
            match run.place {
                Place::At(below) => self.below.read(below, part),
                Place::Hole | Place::Unwritten => {
                    part.fill(0);
                    Ok(())
                }
            }
        })
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.each(offset, length.into(), |place, run| {
            // A piece is not longer than the request.
            let (start, length) = (at + (place - offset) as u32, run.length as u32);
            match run.place {
                Place::At(below) => self.below.read_buffer(below, length, buffer, start)?,
                Place::Hole | Place::Unwritten => buffer.fill(start..start + length, 0),
            }
            Ok(())
        })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        for _ in 0..MOST_PIECES {
            if list.is_full() {
                break;
            }
            let run = self.run(list.at(), list.left())?;
            match run.place {
                // What is not there below cannot be read. The read says so.
                Place::At(below) if below.checked_add(run.length).is_none_or(|end| end > self.below.size()) => {
                    list.push_data(run.length);
                }
                Place::At(below) => {
                    let before = list.at();
                    list.push_from(&*self.below, below, run.length)?;
                    if list.at() == before {
                        list.push_data(run.length);
                    }
                }
                Place::Hole => list.push_hole(run.length),
                Place::Unwritten => list.push_zero(run.length),
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let mut done = 0;
        for _ in 0..MOST_PIECES {
            if done >= length {
                break;
            }
            let run = self.run(offset.saturating_add(done), length - done)?;
            if let Place::At(below) = run.place {
                self.below.cache(below, run.length)?;
            }
            done += run.length;
        }
        Ok(())
    }

    fn description(&self) -> Option<String> {
        self.description.clone()
    }
}

#[cfg(test)]
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
    }

    fn file(places: &[Place]) -> Mapped<Pieces> {
        Mapped::new(Rc::new((0..100).collect::<Vec<u8>>()), Pieces(places.to_vec()))
    }

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
    }

    #[test]
    fn a_piece_beyond_the_end_of_the_source_is_data_that_cannot_be_read() {
        let file = file(&[Place::At(95), Place::Hole]);
        let line = "the image names 10 bytes at 95, and ends after 100 bytes";
        assert_eq!(file.read(0, &mut [0; 12]), Err(Error::image(line)));
        let mut list = ExtentList::new(0, 10);
        file.extents(&mut list).unwrap();
        assert_eq!(list.into_answer().unwrap()[0].kind, ExtentType::empty());
    }
}
