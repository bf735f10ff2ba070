//! Disks that are put together from parts: files, bytes and zeroes. The plugins split,
//! partitioning, floppy, linuxdisk, iso, cdi, tmpdisk, ondemand, example2 and example3 share it.
//!
//! | module | subject |
//! |---|---|
//! | [`regions`] | which part of the disk comes from where |
//! | [`disk`] | a disk of such regions, as clients see it |
//! | [`plugin`] | a plugin with one such disk |
//! | [`file`] | the system calls on the files |
//! | [`mbr`] | partition tables of the old kind |
//! | [`gpt`] | partition tables of the new kind |
//! | [`guid`] | the identifiers in them |
//! | [`crc32`] | their checksums |
//! | [`temporary`] | files without a name |
//! | [`tool`] | programs that run while the server starts |
#![forbid(unsafe_code)]

mod disk;
mod file;
pub mod gpt;
mod guid;
pub mod mbr;
mod plugin;
mod regions;
mod temporary;
mod tool;

pub use disk::{AssembledDisk, AssembledHandle, Backing, Durability, Sharing};
pub use file::{Access, DiskFile};
pub use guid::Guid;
pub use plugin::{Assembled, Assembly, READING_FUNCTIONS};
pub use regions::{Piece, Regions, Source, TooLarge};
pub use temporary::temporary_file;
pub use tool::{find_tool, run_tool, with_system_programs};

/// The size of a sector in partition tables and in FAT, in bytes.
pub const SECTOR: u64 = 512;

#[cfg(test)]
mod tests;
