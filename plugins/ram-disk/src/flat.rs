//! Flat storage (`allocator=malloc`): all of the disk is allocated when the server starts, and
//! stays.
//!
//! The disk is cut into blocks, each with a lock of its own, so that writers to different parts do
//! not wait for one another.

use std::io;
use std::sync::RwLock;

use rbdkit_plugin_api::{Buffer, Extents, Flags, Result, Span, read_lock, write_lock};

use crate::allocator::Residency;
use crate::disk::Storage;
use crate::mlock::mlock;

/// Bytes under one lock. 1 MiB makes the allocator's overhead for each block negligible, and random
/// writers seldom meet in the same block.
const BLOCK: usize = 1 << 20;

/// Why the memory for a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// There is not that much memory.
    #[error("allocator=malloc: no memory for {size} bytes; a smaller size= or allocator=sparse would do")]
    NoMemory {
        /// The size of the disk in bytes.
        size: u64,
    },
    /// The memory may not be locked.
    #[error(
        "allocator=malloc,mlock=true: cannot lock {size} bytes into memory: {source}; \
         a higher limit (ulimit -l) would allow it"
    )]
    NotLocked {
        /// The size of the disk in bytes.
        size: u64,
        /// The answer of mlock(2).
        source: io::Error,
    },
}

/// See the module.
pub struct Flat {
    /// Each of [`BLOCK`] bytes, except for the last one.
    blocks: Vec<RwLock<Vec<u8>>>,
}

impl Flat {
    /// Allocates a disk of `size` bytes. `init` is called for the pieces of the disk in ascending
    /// order, with the offset of the piece and its bytes, all zero.
    ///
    /// # Errors
    /// There is not that much memory, or it may not be locked.
    pub fn new(size: u64, residency: Residency, mut init: impl FnMut(u64, &mut [u8])) -> Result<Flat, AllocationError> {
        let no_memory = || AllocationError::NoMemory { size };
        let count = usize::try_from(size.div_ceil(BLOCK as u64)).map_err(|_| no_memory())?;
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(count).map_err(|_| no_memory())?;
        let mut offset = 0;
        while offset < size {
            let length = (size - offset).min(BLOCK as u64) as usize;
            let mut block = Vec::new();
            block.try_reserve_exact(length).map_err(|_| no_memory())?;
            block.resize(length, 0);
            if residency == Residency::Locked {
                mlock(&block).map_err(|source| AllocationError::NotLocked { size, source })?;
            }
            init(offset, &mut block);
            blocks.push(RwLock::new(block));
            offset += length as u64;
        }
        Ok(Flat { blocks })
    }

    /// Calls `piece` with (block, offset in the block, length) for each block of the range.
    fn each_block(&self, offset: u64, length: u64, mut piece: impl FnMut(&RwLock<Vec<u8>>, usize, usize)) {
        let (mut at, end) = (offset, offset + length);
        for block in self.blocks.iter().skip((offset / BLOCK as u64) as usize) {
            if at >= end {
                break;
            }
            let from = (at % BLOCK as u64) as usize;
            let length = (end - at).min((BLOCK - from) as u64) as usize;
            piece(block, from, length);
            at += length as u64;
        }
    }
}

impl Storage for Flat {
    fn skips_holes(&self) -> bool {
        false
    }

    /// The whole disk is allocated, so this is only a page of the kernel's.
    fn preferred_block(&self) -> u32 {
        4096
    }

    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Result<()> {
        buffer.fill_with(span, |mut bytes| {
            self.each_block(offset, bytes.len() as u64, |block, from, length| {
                let block = read_lock(block);
                let (to, rest) = std::mem::take(&mut bytes).split_at_mut(length);
                to.copy_from_slice(&block[from..from + length]);
                bytes = rest;
            });
            Ok(())
        })
    }

    fn pwrite(&self, mut bytes: &[u8], offset: u64) -> Result<()> {
        self.each_block(offset, bytes.len() as u64, |block, from, length| {
            let mut block = write_lock(block);
            let (piece, rest) = bytes.split_at(length);
            block[from..from + length].copy_from_slice(piece);
            bytes = rest;
        });
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.each_block(offset, length, |block, from, length| {
            write_lock(block)[from..from + length].fill(0);
        });
        Ok(())
    }

    fn extents(&self, offset: u64, _: u64, limit: u64, _: Flags) -> Extents {
        Extents::all_data(offset, limit - offset)
    }
}
