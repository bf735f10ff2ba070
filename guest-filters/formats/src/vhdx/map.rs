//! The block allocation table (BAT): where each block of the disk is.
//!
//! The table has a number of 64 bits for each block. After those of a chunk of blocks, which have
//! 2^23 sectors together, comes one for the bitmap of these sectors. The bitmap matters in
//! differencing disks only.

use std::ops::Range;
use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source};

use super::header::MIB;
use super::metadata::{DiskType, VhdxMetadata};
use crate::block_map::{self, BlockMap, BlockPlace};
use crate::sector_bitmap::{BitOrder, SectorBitmaps};

/// Sectors of a chunk: a bit of 1 MiB for each.
const CHUNK_SECTORS: u64 = 1 << 23;

/// Bytes of an entry.
const ENTRY: u64 = 8;

/// States of a block. Those that are not here have no bytes in the image.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// What drafts of the format had for unmapped blocks.
const UNMAPPED_IN_DRAFTS: u64 = 5;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// The disk of an image.
pub struct VhdxDisk {
    image: Rc<dyn Source>,
    parent: Option<(Rc<dyn Source>, u64)>,
    metadata: VhdxMetadata,
    table: BlockCache,
    bitmaps: SectorBitmaps,
    bat: Range<u64>,
    /// Where no block can be.
    taken: [(Range<u64>, &'static str); 4],
}

impl VhdxDisk {
    /// The disk with these tables.
    ///
    /// # Errors
    /// A line if the table is too small for the disk.
    pub fn new(
        image: Rc<dyn Source>,
        parent: Option<Rc<dyn Source>>,
        metadata: VhdxMetadata,
        regions: &super::regions::Regions,
        log: Range<u64>,
    ) -> Result<VhdxDisk, Error> {
        let disk = VhdxDisk {
            table: block_map::table_cache(&image),
            bitmaps: SectorBitmaps::new(&image, 4096, BitOrder::LowFirst),
            bat: regions.bat.clone(),
            taken: [
                (0..MIB, "the headers are"),
                (log, "the log is"),
                (regions.bat.clone(), "the block allocation table is"),
                (regions.metadata.clone(), "the metadata is"),
            ],
            parent: parent.map(|parent| (parent, 0)),
            image,
            metadata,
        };
        let (needed, has) = (disk.entries(), (disk.bat.end - disk.bat.start) / ENTRY);
        if needed > has {
            return Err(Error::image(format!(
                "the block allocation table has {has} entries, and the disk of {} bytes needs {needed}",
                disk.metadata.size
            )));
        }
        Ok(disk)
    }

    /// Blocks of a chunk: from 16 to 32768.
    fn chunk(&self) -> u64 {
        CHUNK_SECTORS * self.metadata.sector / self.metadata.block
    }

    /// How many entries the table must have.
    fn entries(&self) -> u64 {
        let (blocks, chunk) = (self.metadata.size.div_ceil(self.metadata.block), self.chunk());
        match self.metadata.disk_type {
            DiskType::Differencing => blocks.div_ceil(chunk) * (chunk + 1),
            _ => blocks + blocks.saturating_sub(1) / chunk,
        }
    }

    /// The state and the offset that an entry has.
    fn entry(&self, index: u64) -> Result<(u64, u64), Error> {
        let entry = u64::from_le_bytes(self.table.array(self.bat.start + index * ENTRY)?);
        Ok((entry & 7, entry / MIB * MIB))
    }

    /// # Errors
    /// A line if `length` bytes at `at` cannot be those of `what`.
    fn check(&self, at: u64, length: u64, what: impl Fn() -> String) -> Result<(), Error> {
        let end = at.saturating_add(length);
        if end > self.image.size() {
            return Err(Error::image(format!(
                "{} ends at {end}, and the image after {} bytes",
                what(),
                self.image.size()
            )));
        }
        match self.taken.iter().find(|(taken, _)| at < taken.end && taken.start < end) {
            None => Ok(()),
            Some((taken, whose)) => Err(Error::image(format!(
                "{} is at {at}: {whose} there, from {} to {}",
                what(),
                taken.start,
                taken.end
            ))),
        }
    }

    /// Where the bitmap of the chunk of a block is.
    fn bitmap(&self, number: u64) -> Result<u64, Error> {
        let chunk = number / self.chunk();
        let (state, at) = self.entry((chunk + 1) * self.chunk() + chunk)?;
        if state != FULLY_PRESENT {
            return Err(Error::image(format!(
                "block {number} is partially present, and bitmap {chunk}, which says what is, has the state {state}"
            )));
        }
        self.check(at, MIB, || format!("bitmap {chunk}"))?;
        Ok(at)
    }
}

impl BlockMap for VhdxDisk {
    fn size(&self) -> u64 {
        self.metadata.size
    }

    fn stored_in(&self) -> &dyn Source {
        &*self.image
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let VhdxMetadata { block, sector, size, .. } = self.metadata;
        let (number, within) = (offset / block, offset % block);
        let left = block - within;
        let (state, at) = self.entry(number + number / self.chunk())?;
        match state {
            NOT_PRESENT => return Ok((BlockPlace::Absent, left)),
            // The parent's bytes are not the block's, although nobody says which are.
            UNDEFINED | ZERO | UNMAPPED | UNMAPPED_IN_DRAFTS => return Ok((BlockPlace::Zero, left)),
            FULLY_PRESENT => {}
            PARTIALLY_PRESENT if self.metadata.disk_type == DiskType::Differencing => {}
            other => {
                return Err(Error::image(format!(
                    "block {number} has the state {other}, which a block of a {} disk cannot have",
                    self.metadata.disk_type.name()
                )));
            }
        }
        // The last block need not be there behind the end of the disk.
        self.check(at, block.min(size - number * block), || format!("block {number}"))?;
        let stored = BlockPlace::Stored(at + within);
        if state == FULLY_PRESENT {
            return Ok((stored, left));
        }
        let bitmap = self.bitmap(number)?;
        let first = number % self.chunk() * (block / sector);
        let (is_here, alike) = self.bitmaps.alike(bitmap, first + within / sector, left.div_ceil(sector))?;
        Ok((if is_here { stored } else { BlockPlace::Absent }, alike * sector - within % sector))
    }

    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        self.parent.as_ref()
    }

    fn is_fixed(&self) -> bool {
        self.metadata.disk_type == DiskType::Fixed
    }

    fn description(&self) -> Option<String> {
        Some(format!("VHDX image, {}", self.metadata.disk_type.name()))
    }
}
