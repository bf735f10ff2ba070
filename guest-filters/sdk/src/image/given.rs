//! A disk that the operator gave as a source.

use std::rc::Rc;

use super::source::check_range;
use super::{Error, ExtentList, Source};
use crate::buffer::{Buffer, Bytes};
use crate::params::Disk;
use crate::{CommandFlags, Errno};

/// At most so many bytes are read into the guest at once.
const PIECE: usize = 1 << 20;

/// A disk beside next, which a parameter names: a backing file, a parent. Its bytes do not enter
/// the guest with [`Source::read_buffer`].
#[derive(Debug)]
pub struct GivenDisk {
    disk: Disk,
    size: u64,
}

impl GivenDisk {
    /// The disk of a parameter. The host opens it, if no connection did yet.
    ///
    /// # Errors
    /// Those of the disk. The host has logged why.
    pub fn new(disk: &Disk) -> Result<GivenDisk, Errno> {
        Ok(GivenDisk { disk: disk.clone(), size: disk.size()? })
    }

    /// The disk of a parameter that may be left out.
    ///
    /// # Errors
    /// Those of [`new`](GivenDisk::new).
    pub fn optional(disk: &Option<Disk>) -> Result<Option<Rc<dyn Source>>, Errno> {
        disk.as_ref().map(|disk| Ok(Rc::new(GivenDisk::new(disk)?) as Rc<dyn Source>)).transpose()
    }
}

impl Source for GivenDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        check_range(self, offset, into.len() as u64)?;
        let mut at = offset;
        for piece in into.chunks_mut(PIECE) {
            let length = piece.len() as u32;
            let buffer = Buffer::new(length)?;
            self.disk.pread(at, length, buffer.id(), 0)?;
            piece.copy_from_slice(&buffer.read(..));
            at += u64::from(length);
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        check_range(self, offset, length.into())?;
        Ok(self.disk.pread(offset, length, buffer.id(), at)?)
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        Ok(list.push_answers(|offset, length| self.disk.extents(offset, length, CommandFlags::empty()))?)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        check_range(self, offset, length)?;
        match self.disk.cache(offset, length.min(1 << 31)) {
            // It is advice.
            Ok(()) | Err(Errno::Enotsup) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
