//! The layer below as a source.

use super::source::check_range;
use super::{Error, ExtentList, Source};
use crate::buffer::{Buffer, Bytes};
use crate::{CommandFlags, Errno, Support, next};

/// At most so many bytes are read into the guest at once.
const PIECE: usize = 1 << 20;

/// The layer below. Its bytes do not enter the guest with [`Source::read_buffer`].
#[derive(Debug)]
pub struct Next {
    size: u64,
    has_extents: bool,
    caches: bool,
    /// The smallest block that next serves, a power of two.
    block: u64,
}

impl Next {
    /// The layer below of the connection that is being served, which is open.
    ///
    /// # Errors
    /// Those of next.
    pub fn new() -> Result<Next, Errno> {
        let can = next::can()?;
        let block = next::block_size().map_or(1, |sizes| sizes.minimum.max(1));
        Ok(Next {
            size: next::get_size()?,
            has_extents: can.extents,
            caches: can.cache != Support::None,
            block: block.into(),
        })
    }

    /// The blocks around a range, if the range does not consist of whole blocks.
    fn blocks_around(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let (start, end) = (offset & !(self.block - 1), offset + length);
        let end_of_blocks = end.checked_next_multiple_of(self.block)?.min(self.size);
        (start != offset || end_of_blocks != end).then_some((start, end_of_blocks))
    }
}

impl Source for Next {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        check_range(self, offset, into.len() as u64)?;
        let mut at = offset;
        for piece in into.chunks_mut(PIECE) {
            let length = piece.len() as u64;
            let (start, end) = self.blocks_around(at, length).unwrap_or((at, at + length));
            let buffer = Buffer::new((end - start) as u32)?;
            next::pread(start, (end - start) as u32, buffer.id(), 0)?;
            let skip = (at - start) as u32;
            piece.copy_from_slice(&buffer.read(skip..skip + length as u32));
            at += length;
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        check_range(self, offset, length.into())?;
        let Some((start, end)) = self.blocks_around(offset, length.into()) else {
            return Ok(next::pread(offset, length, buffer.id(), at)?);
        };
        let around = u32::try_from(end - start).map_err(|_| Errno::Eoverflow)?;
        let blocks = Buffer::new(around)?;
        next::pread(start, around, blocks.id(), 0)?;
        let skip = (offset - start) as u32;
        buffer.copy(at, &blocks, skip..skip + length);
        Ok(())
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        if !self.has_extents {
            list.push_data(list.left());
            return Ok(());
        }
        Ok(list.push_answers(|offset, length| next::extents(offset, length, CommandFlags::empty()))?)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        check_range(self, offset, length)?;
        if self.caches && length > 0 {
            next::cache(offset, length.min(1 << 31))?;
        }
        Ok(())
    }
}
