//! A file that is a partition, and what holds for it.

use std::path::PathBuf;

use rbdkit_assembled::Guid;

/// The largest alignment, which is the default, in bytes.
pub(crate) const MAX_ALIGNMENT: u64 = 1 << 20;

/// The default kind of a partition in a table of the old kind: a Linux file system.
pub(crate) const DEFAULT_MBR_ID: u8 = 0x83;

/// A file that is a partition.
#[derive(Debug)]
pub(crate) struct PartitionFile {
    /// As it was given.
    pub(crate) name: PathBuf,
    pub(crate) size: u64,
    pub(crate) settings: Settings,
}

/// What holds for the files that follow on the command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) alignment: u64,
    pub(crate) mbr_id: u8,
    pub(crate) type_guid: Guid,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { alignment: MAX_ALIGNMENT, mbr_id: DEFAULT_MBR_ID, type_guid: Guid::LINUX }
    }
}
