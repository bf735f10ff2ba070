//! Disks that are made of runs: bytes of the image, bytes of a parent, and what reads as zero.
//!
//! A decoder that implements [`Layout`] says where the bytes of the disk are. [`Runs`] makes a
//! [`Source`] of it: neighbouring runs become one read, and bytes of the image or the parent do not
//! enter the guest.

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image, from this offset on.
    Image(u64),
    /// In the image, from this offset on. What the source of the image knows of its extents says
    /// what the extents of the disk are.
    Mapped(u64),
    /// In the parent, at the same offset. Without a parent, and behind its end, they are zero.
    Parent,
    /// Nowhere: they read as zero.
    Hole,
}

impl Place {
    /// The place of the byte that is `length` bytes further on, if the run is as long.
    fn behind(self, length: u64) -> Place {
        match self {
            Place::Image(at) => Place::Image(at.saturating_add(length)),
            Place::Mapped(at) => Place::Mapped(at.saturating_add(length)),
            other => other,
        }
    }
}

/// Where the bytes of a disk are.
pub trait Layout {
    /// The size of the disk in bytes.
    fn size(&self) -> u64;

    /// What the offsets of the runs are of.
    fn image(&self) -> &dyn Source;

    /// The disk that has what this one does not.
    fn parent(&self) -> Option<&dyn Source> {
        None
    }

    /// The place of the byte at `offset`, and how many bytes from there on are in one piece: at
    /// least 1. It may be more than `most`, which is how many the caller has a use for. The caller
    /// checks that `offset` is within the disk.
    ///
    /// # Errors
    /// Those of the image. A line if a table is wrong.
    fn run(&self, offset: u64, most: u64) -> Result<(Place, u64), Error>;

    /// For people: see [`Source::description`].
    fn description(&self) -> String;
}

/// A disk that is made of runs.
pub struct Runs<L>(pub L);

/// A read looks at this many runs to find those that are neighbours of each other. It bounds the
/// work of an image whose runs are sectors.
const MOST_MERGED: u32 = 1 << 16;

impl<L: Layout> Runs<L> {
    /// The place of the byte at `offset` and how many bytes are in one piece, at most `most`.
    fn merged(&self, offset: u64, most: u64) -> Result<(Place, u64), Error> {
        let (place, length) = self.0.run(offset, most)?;
        let mut length = length.min(most);
        for _ in 0..MOST_MERGED {
            if length == most {
                break;
            }
            let (next, more) = self.0.run(offset + length, most - length)?;
            if next != place.behind(length) {
                break;
            }
            length += more.min(most - length);
        }
        Ok((place, length))
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.0.size() => Ok(()),
            _ => Err(Error::image(format!("{length} bytes at {offset} are not within the disk of {}", self.0.size()))),
        }
    }

    /// How many of `length` bytes at `offset` the parent has.
    fn of_parent(&self, offset: u64, length: u64) -> Option<(&dyn Source, u64)> {
        let parent = self.0.parent()?;
        let has = parent.size().saturating_sub(offset).min(length);
        (has > 0).then_some((parent, has))
    }
}

impl<L: Layout> Source for Runs<L> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Error> {
        self.check(offset, into.len() as u64)?;
        while !into.is_empty() {
            let (place, length) = self.merged(offset, into.len() as u64)?;
            let (part, rest) = into.split_at_mut(length as usize);
            match place {
                Place::Image(at) | Place::Mapped(at) => self.0.image().read(at, part)?,
                Place::Hole => part.fill(0),
                Place::Parent => {
                    let mut has = 0;
                    if let Some((parent, of_parent)) = self.of_parent(offset, length) {
                        has = of_parent as usize;
                        parent.read(offset, &mut part[..has])?;
                    }
                    part[has..].fill(0);
                }
            }
            into = rest;
            offset += length;
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.check(offset, length.into())?;
        let mut done = 0;
        while done < length {
            let (from, at) = (offset + u64::from(done), at + done);
            let (place, run) = self.merged(from, (length - done).into())?;
            let run = run as u32;
            match place {
                Place::Image(image) | Place::Mapped(image) => self.0.image().read_buffer(image, run, buffer, at)?,
                Place::Hole => buffer.fill(at..at + run, 0),
                Place::Parent => {
                    let mut has = 0;
                    if let Some((parent, of_parent)) = self.of_parent(from, run.into()) {
                        has = of_parent as u32;
                        parent.read_buffer(from, has, buffer, at)?;
                    }
                    if has < run {
                        buffer.fill(at + has..at + run, 0);
                    }
                }
            }
            done += run;
        }
        Ok(())
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        let mut steps = 0;
        while !list.is_full() && list.at() < self.0.size() && steps < MOST_MERGED {
            steps += 1;
            let (place, length) = self.0.run(list.at(), list.left())?;
            let length = length.min(list.left());
            match place {
                Place::Image(_) => list.push_data(length),
                Place::Mapped(image) => list.push_from(self.0.image(), image, length)?,
                Place::Hole => list.push_hole(length),
                Place::Parent => match self.of_parent(list.at(), length) {
                    Some((parent, has)) => {
                        let from = list.at();
                        list.push_from(parent, from, has)?;
                    }
                    None => list.push_hole(length),
                },
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check(offset, length)?;
        let mut done = 0;
        while done < length {
            let (place, run) = self.merged(offset + done, length - done)?;
            match place {
                Place::Image(at) | Place::Mapped(at) => self.0.image().cache(at, run)?,
                Place::Hole => {}
                Place::Parent => {
                    if let Some((parent, has)) = self.of_parent(offset + done, run) {
                        parent.cache(offset + done, has)?;
                    }
                }
            }
            done += run;
        }
        Ok(())
    }

    fn description(&self) -> Option<String> {
        Some(self.0.description())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Blocks of 10 bytes.
    struct Blocks {
        blocks: Vec<Place>,
        image: Counted,
        parent: Vec<u8>,
    }

    struct Counted(RefCell<Vec<(u64, usize)>>);

    impl Source for Counted {
        fn size(&self) -> u64 {
            1000
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
            self.0.borrow_mut().push((offset, into.len()));
            into.fill(1);
            Ok(())
        }
    }

    impl Layout for Blocks {
        fn size(&self) -> u64 {
            self.blocks.len() as u64 * 10
        }
        fn image(&self) -> &dyn Source {
            &self.image
        }
        fn parent(&self) -> Option<&dyn Source> {
            Some(&self.parent)
        }
        fn run(&self, offset: u64, _: u64) -> Result<(Place, u64), Error> {
            Ok((self.blocks[(offset / 10) as usize].behind(offset % 10), 10 - offset % 10))
        }
        fn description(&self) -> String {
            "blocks".into()
        }
    }

    #[test]
    fn neighbouring_runs_are_read_at_once_and_the_parent_may_be_shorter() {
        let blocks =
            vec![Place::Image(50), Place::Image(60), Place::Image(80), Place::Parent, Place::Parent, Place::Hole];
        let disk = Runs(Blocks { blocks, image: Counted(RefCell::default()), parent: vec![2; 45] });
        let bytes = rbdkit_filter_sdk::image::read(&disk, 5, 55).unwrap();
        assert_eq!(bytes, [vec![1; 25], vec![2; 15], vec![0; 15]].concat());
        assert_eq!(*disk.0.image.0.borrow(), [(55, 15), (80, 10)]);
        let line = "2 bytes at 59 are not within the disk of 60";
        assert_eq!(disk.read(59, &mut [0; 2]), Err(Error::image(line)));
        let mut list = ExtentList::new(5, 55);
        disk.extents(&mut list).unwrap();
        let lengths: Vec<u64> = list.into_answer().unwrap().iter().map(|extent| extent.length).collect();
        assert_eq!(lengths, [40, 15]);
    }
}
