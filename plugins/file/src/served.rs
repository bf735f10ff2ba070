//! Which files are served, and how they are opened.

use rustix::fs::{FileType, OFlags, Stat};

/// How files are opened. NONBLOCK avoids waiting if the file was replaced by a pipe meanwhile. It
/// has no effect on the files that are served.
pub(crate) const OPENING: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// Whether it is a regular file or a block device.
pub(crate) fn is_served(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::BlockDevice)
}
