//! The layer below the filter: a disk in memory.

use crate::{BlockSizes, Capabilities, CommandFlags, Errno, Extent, ExtentType, Support};

use super::extents;

/// The simulated disk below. By default it can do everything but fast zeroes, has no block sizes
/// and no description.
#[derive(Clone, Debug)]
pub struct Disk {
    bytes: Vec<u8>,
    pub(super) can: Capabilities,
    pub(super) block_sizes: Option<BlockSizes>,
    pub(super) description: Option<String>,
}

/// Blocks of this size that are zero are holes.
const HOLE: u64 = 4096;

impl Disk {
    /// A disk with this content.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Disk {
        let can = Capabilities {
            write: true,
            flush: true,
            rotational: false,
            trim: true,
            fast_zero: false,
            extents: true,
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        };
        Disk { bytes: bytes.into(), can, block_sizes: None, description: None }
    }

    /// A disk of zeroes. `size` is in bytes.
    pub fn zeroes(size: usize) -> Disk {
        Disk::new(vec![0; size])
    }

    /// A disk whose bytes all differ from their neighbours. `size` is in bytes.
    pub fn pattern(size: usize) -> Disk {
        Disk::new((0..size).map(|n| (n * 7 + n / 251 + 1) as u8).collect::<Vec<u8>>())
    }

    /// The same disk with other capabilities.
    pub fn can(mut self, change: impl FnOnce(&mut Capabilities)) -> Disk {
        change(&mut self.can);
        self
    }

    /// The same disk, which cannot be written.
    pub fn read_only(self) -> Disk {
        self.can(|can| (can.write, can.trim, can.zero, can.fua) = (false, false, Support::None, Support::None))
    }

    /// The same disk with these block sizes.
    pub fn block_sizes(mut self, sizes: BlockSizes) -> Disk {
        self.block_sizes = Some(sizes);
        self
    }

    /// The same disk with a description for people.
    pub fn description(mut self, text: &str) -> Disk {
        self.description = Some(text.into());
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes of a range.
    pub(super) fn range(&mut self, offset: u64, length: u64) -> Result<&mut [u8], Errno> {
        let end = offset.checked_add(length).filter(|end| *end <= self.bytes.len() as u64).ok_or(Errno::Einval)?;
        Ok(&mut self.bytes[offset as usize..end as usize])
    }

    /// The extents of a range. The last one may run on up to `limit`.
    pub(super) fn extents(
        &mut self,
        offset: u64,
        length: u64,
        limit: u64,
        flags: CommandFlags,
    ) -> Result<Vec<Extent>, Errno> {
        self.range(offset, length)?;
        let one = flags.contains(CommandFlags::REQ_ONE);
        let end = offset + length;
        let limit = if one { end } else { limit.clamp(end, self.size()) };
        let mut list: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < limit {
            let to = (at - at % HOLE + HOLE).min(limit);
            let block = (at - at % HOLE) as usize..((at - at % HOLE + HOLE) as usize).min(self.bytes.len());
            let hole = self.can.extents && self.bytes[block].iter().all(|byte| *byte == 0);
            let kind = if hole { ExtentType::HOLE | ExtentType::ZERO } else { ExtentType::empty() };
            match list.last() {
                Some(last) if last.kind != kind && (one || at >= end) => break,
                _ => extents::push(&mut list, Extent { offset: at, length: to - at, kind }),
            }
            at = to;
        }
        Ok(list)
    }
}
