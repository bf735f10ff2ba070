//! The formats that are looked for.

use crate::{
    FormatInfo, bochs, bzip2, dmg, ext2, fat, gzip, iso9660, lvm, lz4, lzip, parallels, partition, qcow2, tar, vdi,
    vhd, vhdx, vmdk, xz, zip, zstd,
};

/// Where the signature of a format stands, and so what else the image may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the start: nothing else can begin there.
    Header,
    /// At the end: the start is that of the disk.
    Trailer,
    /// It is what a disk has in it: a partition table, a file system. It is described and not
    /// opened.
    Content,
}

/// A format, and where its signature stands.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The format.
    pub info: FormatInfo,
    /// The place of the signature.
    pub place: Place,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.info.name)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.info.name == other.info.name
    }
}

impl Eq for Entry {}

/// The order in which signatures are looked for. It decides the order of names in messages; an
/// image that has two of them is refused.
pub const FORMATS: &[Entry] = &[
    header(qcow2::INFO),
    header(vmdk::INFO),
    header(vdi::INFO),
    header(parallels::INFO),
    header(bochs::INFO),
    trailer(vhd::INFO),
    header(vhdx::INFO),
    trailer(dmg::INFO),
    header(gzip::INFO),
    header(xz::INFO),
    header(lzip::INFO),
    header(zstd::INFO),
    header(lz4::INFO),
    header(bzip2::INFO),
    header(tar::INFO),
    header(zip::INFO),
    content(partition::INFO),
    content(lvm::INFO),
    content(ext2::INFO),
    content(iso9660::INFO),
    content(fat::INFO),
];

const fn header(info: FormatInfo) -> Entry {
    Entry { info, place: Place::Header }
}

const fn trailer(info: FormatInfo) -> Entry {
    Entry { info, place: Place::Trailer }
}

const fn content(info: FormatInfo) -> Entry {
    Entry { info, place: Place::Content }
}
