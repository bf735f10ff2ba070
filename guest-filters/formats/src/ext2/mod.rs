//! ext2, ext3 and ext4: a file inside the file system.
//!
//! The path is looked up once, when the file is opened. What is kept is the inode's map; blocks of
//! metadata are read when a request needs them. Directories are read from the start to the end,
//! also those with an index of hashes.
//!
//! The crate ext4-view reads ext4 as well. It is not used: it does not tell where the data is, so
//! each byte would pass through the guest and nothing could be written, and to seek it walks
//! through all blocks before the offset.

mod inode;
mod map;
mod superblock;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{self, BlockCache, Error, ExtentList, Fields, Source, quoted};

use crate::mapped::{Mapped, Run};
use crate::paths::{self, DirectoryBudget, Kind, Tree};
use crate::{FormatInfo, Report};
use inode::Inode;
use map::Map;
use superblock::Superblock;

/// The format.
pub const INFO: FormatInfo = FormatInfo {
    name: "ext2",
    probe: superblock::has_magic,
    report,
    open: |_| {
        Err(Error::image(
            "this is an ext2, ext3 or ext4 file system: ext2file=/PATH of the filter ext2 opens a file in it",
        ))
    },
};

/// Bytes of metadata that are kept.
const KEPT: u32 = 1 << 20;

/// Bytes of a directory that are read at once, at least.
const PIECE: u64 = 64 << 10;

const ROOT: u32 = 2;

/// What to do with a file system whose journal has changes that are not in their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// Refuse it.
    Refuse,
    /// Read what is in place, and do not write.
    Ignore,
}

/// An opened file.
pub struct File {
    content: Content,
    is_writable: bool,
    description: String,
}

enum Content {
    Blocks(Mapped<Map>),
    /// The whole content is in the inode.
    Inline(Vec<u8>),
}

impl File {
    /// Opens the file with this path.
    ///
    /// # Errors
    /// Those of the source. A line if there is no such file, or if the file system is wrong.
    pub fn open(below: Rc<dyn Source>, path: &str, journal: Journal) -> Result<File, Error> {
        let superblock = Superblock::read(&*below)?;
        if superblock.needs_recovery() && journal == Journal::Refuse {
            return Err(Error::image(
                "the journal has changes that are not in their places: the file system is in use, or was not \
                 unmounted. Run e2fsck on it, or read what is in place with ext2-journal=ignore",
            ));
        }
        let system = System::new(below, superblock);
        let inode = paths::find(&system, path)?;
        let shown = quoted(path.as_bytes());
        if let Some(why) = inode.why_unreadable() {
            return Err(Error::image(format!("{shown} {why}")));
        }
        let is_writable =
            inode.is_writable() && !system.superblock.needs_recovery() && system.superblock.why_read_only().is_none();
        let description = format!("{shown} in an {} file system", system.superblock.version());
        Ok(File { content: system.content(&inode)?, is_writable, description })
    }

    /// Whether the blocks of the file can be written in place.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Calls `each` with every piece of a range: its offset in the file, and where it is below.
    ///
    /// # Errors
    /// Those of the source and of `each`.
    pub fn each(&self, offset: u64, length: u64, each: impl FnMut(u64, Run) -> Result<(), Error>) -> Result<(), Error> {
        match &self.content {
            Content::Blocks(file) => file.each(offset, length, each),
            Content::Inline(_) => Err(Error::image("the file's data is in its inode, and cannot be written")),
        }
    }

    fn source(&self) -> &dyn Source {
        match &self.content {
            Content::Blocks(file) => file,
            Content::Inline(bytes) => bytes,
        }
    }
}

impl Source for File {
    fn size(&self) -> u64 {
        self.source().size()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.source().read(offset, into)
    }
    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.source().read_buffer(offset, length, buffer, at)
    }
    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.source().extents(list)
    }
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.source().cache(offset, length)
    }
    fn description(&self) -> Option<String> {
        Some(self.description.clone())
    }
}

/// The file system.
struct System {
    superblock: Superblock,
    below: Rc<dyn Source>,
    cache: Rc<BlockCache>,
    budget: DirectoryBudget,
}

impl System {
    fn new(below: Rc<dyn Source>, superblock: Superblock) -> System {
        // A block has 64 KiB at most.
        let cache = Rc::new(BlockCache::new(Rc::clone(&below), superblock.block_size as u32, KEPT));
        System { superblock, below, cache, budget: DirectoryBudget::default() }
    }

    fn inode(&self, number: u32) -> Result<Inode, Error> {
        let offset = self.superblock.inode_offset(number, |at, into| self.cache.read(at, into))?;
        // An inode is not larger than a block.
        let mut bytes = vec![0; self.superblock.inode_size as usize];
        self.cache.read(offset, &mut bytes)?;
        Inode::parse(number, bytes)
    }

    fn content(&self, inode: &Inode) -> Result<Content, Error> {
        if inode.flags & inode::INLINE != 0 {
            let mut bytes = inode.inline()?.concat();
            if inode.size > self.superblock.inode_size {
                let line = format!(
                    "has a size of {}, and its data is in its {} bytes",
                    inode.size, self.superblock.inode_size
                );
                return Err(Error::image(format!("inode {} {line}", inode.number)));
            }
            // mke2fs leaves zeroes at the end out.
            bytes.resize(inode.size as usize, 0);
            return Ok(Content::Inline(bytes));
        }
        Ok(Content::Blocks(self.blocks(inode)?))
    }

    fn blocks(&self, inode: &Inode) -> Result<Mapped<Map>, Error> {
        let block_size = self.superblock.block_size;
        // A file has at most as many blocks as 32 bits count.
        if inode.size > block_size << 32 || inode.size > i64::MAX as u64 {
            let line = format!("has a size of {}, and a file has at most {} bytes", inode.size, block_size << 32);
            return Err(Error::image(format!("inode {} {line}", inode.number)));
        }
        let blocks = self.superblock.blocks;
        let tree = map::Tree::of_inode(inode.block(), inode.flags & inode::EXTENTS != 0, inode.number, blocks)?;
        let (size, cache) = (inode.size, Rc::clone(&self.cache));
        let map = Map { inode: inode.number, size, block_size, blocks, cache, tree };
        Ok(Mapped::new(Rc::clone(&self.below), map))
    }

    /// The inode that a name has in some blocks of a directory.
    fn find_in(&self, directory: u32, bytes: &[u8], name: &[u8]) -> Result<Option<u32>, Error> {
        let fields = Fields::little(bytes, "the directory");
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let (inode, length) = (fields.u32(at)?, usize::from(fields.u16(at + 4)?));
            // A block of 64 KiB with one entry has no room for its length.
            let length = if matches!(length, 0 | 65535) && bytes.len() == 65536 { 65536 } else { length };
            let name_length = usize::from(fields.u8(at + 6)?);
            if length < 12.max(8 + name_length) || !length.is_multiple_of(4) || length > bytes.len() - at {
                let line = format!("has an entry of {length} bytes with a name of {name_length} at {at} of a block");
                return Err(Error::image(format!("the directory of inode {directory} is damaged: it {line}")));
            }
            if inode != 0 && fields.bytes(at + 8, name_length)? == name {
                return Ok(Some(inode));
            }
            at += length;
        }
        Ok(None)
    }

    fn find_name(&self, directory: &Inode, name: &[u8]) -> Result<Option<u32>, Error> {
        if directory.flags & inode::INLINE != 0 {
            let [first, second] = directory.inline()?;
            // The first four bytes are the inode of `..`.
            let found = self.find_in(directory.number, first.get(4..).unwrap_or_default(), name)?;
            return if found.is_some() { Ok(found) } else { self.find_in(directory.number, &second, name) };
        }
        let block = self.superblock.block_size;
        let size = directory.size;
        if !size.is_multiple_of(block) || size > self.superblock.blocks * block {
            let line = format!("has a size of {size}, which is not right for blocks of {block}");
            return Err(Error::image(format!("the directory of inode {} {line}", directory.number)));
        }
        let blocks = self.blocks(directory)?;
        let mut at = 0;
        while at < size {
            let piece = PIECE.max(block).min(size - at);
            self.budget.take(piece)?;
            let bytes = image::read(&blocks, at, piece as usize)?;
            for block in bytes.chunks(block as usize) {
                let found = self.find_in(directory.number, block, name)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            at += piece;
        }
        Ok(None)
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let size = inode.size;
        if size > 4096 {
            let line = format!("has a path of {size} bytes, and at most 4096 is right");
            return Err(Error::image(format!("the symbolic link of inode {} {line}", inode.number)));
        }
        if let Some(why) = inode.why_unreadable() {
            return Err(Error::image(format!("the symbolic link of inode {} {why}", inode.number)));
        }
        if inode.flags & (inode::INLINE | inode::EXTENTS) == 0 && size < 60 {
            return Ok(inode.block()[..size as usize].to_vec());
        }
        match self.content(inode)? {
            Content::Blocks(file) => image::read(&file, 0, size as usize),
            Content::Inline(bytes) => Ok(bytes),
        }
    }
}

impl Tree for System {
    type Node = Inode;

    fn root(&self) -> Inode {
        // The lookup reads it: the root has no bytes of its own yet.
        Inode::parse(ROOT, vec![0; 128]).unwrap_or_else(|_| unreachable!("128 bytes are an inode"))
    }

    fn kind(&self, node: &Inode) -> Result<Kind, Error> {
        Ok(match node.format() {
            8 => Kind::File,
            4 => Kind::Directory,
            10 => Kind::Link(self.link(node)?),
            1 => Kind::Other("a named pipe"),
            2 => Kind::Other("a character device"),
            6 => Kind::Other("a block device"),
            12 => Kind::Other("a socket"),
            _ => Kind::Other("something unknown"),
        })
    }

    fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<Inode>, Error> {
        let root;
        let directory = if directory.number == ROOT {
            root = self.inode(ROOT)?;
            &root
        } else {
            directory
        };
        if directory.format() != 4 {
            let line = "the file system is damaged: its root directory is none";
            return Err(Error::image(line));
        }
        if let Some(why) = directory.why_unreadable() {
            return Err(Error::image(format!("the directory of inode {} {why}", directory.number)));
        }
        self.find_name(directory, name)?.map(|number| self.inode(number)).transpose()
    }
}

fn report(source: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let superblock = match Superblock::read(&**source) {
        Ok(superblock) => superblock,
        Err(Error::Image(line)) => {
            report.danger(line);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let size = superblock.blocks * superblock.block_size;
    report.fact("version", superblock.version());
    report.fact("label", quoted(&superblock.label));
    let uuid: String = superblock.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    report.fact("uuid", uuid);
    report.fact("block size", superblock.block_size);
    report.fact("file system size", size);
    report.fact("inodes", superblock.inodes);
    report.fact("features", superblock.features().join(" "));
    if !superblock.last_mounted.is_empty() {
        report.fact("last mounted on", quoted(&superblock.last_mounted));
    }
    if superblock.needs_recovery() {
        report.danger("its journal has changes that are not in their places: it is in use, or was not unmounted");
    }
    if superblock.state & 1 == 0 {
        report.danger("it is not marked clean: it is in use, or was not unmounted");
    }
    if superblock.state & 2 != 0 {
        report.danger("it is marked as damaged: run e2fsck");
    }
    if size > source.size() {
        report.danger(format!("it has {size} bytes, and the image ends after {}", source.size()));
    }
    Ok(report)
}
