//! Flat storage (`allocator=malloc`): all of the disk is allocated when the server starts, and stays.
//!
//! It lies in blocks, each with a lock of its own, so that writers to different parts do not wait for one another.

use std::sync::RwLock;

use rbdkit_plugin_api::{ConfigError, Extents, read_lock, write_lock};

/// Bytes under one lock: so many that the allocator's overhead vanishes, so few that random writers seldom meet.
const BLOCK: usize = 1 << 20;

/// The storage. All offsets and lengths it is given lie within its size: the gate in front of the plugin sees to it.
pub(crate) struct Flat {
    /// All of [`BLOCK`] bytes, but for the last one.
    blocks: Vec<RwLock<Vec<u8>>>,
}

impl Flat {
    /// Allocates it, and with `mlock` locks it into memory.
    ///
    /// # Errors
    /// If there is not that much memory, or it may not be locked.
    pub(crate) fn new(size: u64, mlock: bool) -> Result<Flat, ConfigError> {
        let too_large = || {
            ConfigError::new(format!(
                "memory: allocator=malloc: no memory for {size} bytes; a smaller size= or allocator=sparse would do"
            ))
        };
        let count = usize::try_from(size.div_ceil(BLOCK as u64)).map_err(|_| too_large())?;
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(count).map_err(|_| too_large())?;
        let mut left = size;
        while left > 0 {
            let length = left.min(BLOCK as u64) as usize;
            let mut block = Vec::new();
            block.try_reserve_exact(length).map_err(|_| too_large())?;
            block.resize(length, 0);
            if mlock {
                crate::mlock::lock(&block).map_err(|error| {
                    ConfigError::new(format!(
                        "memory: allocator=malloc,mlock=true: cannot lock {size} bytes into memory: {error}; \
                         a higher limit (ulimit -l) would allow it"
                    ))
                })?;
            }
            blocks.push(RwLock::new(block));
            left -= length as u64;
        }
        Ok(Flat { blocks })
    }

    pub(crate) fn read(&self, mut bytes: &mut [u8], offset: u64) {
        self.each_block(offset, bytes.len() as u64, |block, from, length| {
            let block = read_lock(block);
            let (to, rest) = std::mem::take(&mut bytes).split_at_mut(length);
            to.copy_from_slice(&block[from..from + length]);
            bytes = rest;
        });
    }

    pub(crate) fn write(&self, mut bytes: &[u8], offset: u64) {
        self.each_block(offset, bytes.len() as u64, |block, from, length| {
            let mut block = write_lock(block);
            let (piece, rest) = bytes.split_at(length);
            block[from..from + length].copy_from_slice(piece);
            bytes = rest;
        });
    }

    pub(crate) fn zero(&self, offset: u64, length: u64) {
        self.each_block(offset, length, |block, from, length| {
            write_lock(block)[from..from + length].fill(0);
        });
    }

    pub(crate) fn extents(&self, offset: u64, length: u64) -> Extents {
        Extents::all_data(offset, length)
    }

    /// Calls `piece` with (block, offset in it, length) for each block of the range.
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
