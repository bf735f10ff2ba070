//! Inodes, and what is in them instead of in blocks.

use rbdkit_filter_sdk::image::{Error, Fields};

pub const EXTENTS: u32 = 0x8_0000;
pub const INLINE: u32 = 0x1000_0000;
const COMPRESSED: u32 = 0x4;
const ENCRYPTED: u32 = 0x800;
const VERITY: u32 = 0x10_0000;
const EA_INODE: u32 = 0x20_0000;

/// An inode.
#[derive(Clone)]
pub struct Inode {
    pub number: u32,
    mode: u16,
    pub size: u64,
    pub flags: u32,
    bytes: Vec<u8>,
}

impl Inode {
    /// From its bytes in the table.
    pub fn parse(number: u32, bytes: Vec<u8>) -> Result<Inode, Error> {
        let fields = Fields::little(&bytes, "the inode");
        let (mode, flags) = (fields.u16(0)?, fields.u32(32)?);
        let size = u64::from(fields.u32(108)?) << 32 | u64::from(fields.u32(4)?);
        Ok(Inode { number, mode, size, flags, bytes })
    }

    /// The kind of the file, from the mode.
    pub fn format(&self) -> u16 {
        self.mode >> 12
    }

    /// The part that has the map, the path of a short link, or data.
    pub fn block(&self) -> &[u8] {
        self.bytes.get(40..100).unwrap_or_default()
    }

    /// Why the content cannot be read.
    pub fn why_unreadable(&self) -> Option<&'static str> {
        match () {
            () if self.flags & ENCRYPTED != 0 => Some("is encrypted, and the key is not in the file system"),
            () if self.flags & COMPRESSED != 0 => Some("is compressed, which is not supported"),
            () if self.flags & EA_INODE != 0 => Some("holds an extended attribute, and is not a file"),
            () => None,
        }
    }

    /// Whether the data may be written in place.
    pub fn is_writable(&self) -> bool {
        self.flags & (VERITY | INLINE) == 0
    }

    /// The content of a file or directory that is in the inode: the part beside the map, and the
    /// value of the attribute `system.data`.
    pub fn inline(&self) -> Result<[Vec<u8>; 2], Error> {
        Ok([self.block().to_vec(), self.system_data()?])
    }

    fn system_data(&self) -> Result<Vec<u8>, Error> {
        let fields = Fields::little(&self.bytes, "the inode's attributes");
        if self.bytes.len() <= 130 {
            return Ok(Vec::new());
        }
        let start = 128 + usize::from(fields.u16(128)?);
        if start + 4 > self.bytes.len() || fields.u32(start)? != 0xea02_0000 {
            return Ok(Vec::new());
        }
        let first = start + 4;
        let mut at = first;
        // An entry has at least 16 bytes, so the inode bounds the loop.
        while at + 16 <= self.bytes.len() && fields.u32(at)? != 0 {
            let (length, index) = (usize::from(fields.u8(at)?), fields.u8(at + 1)?);
            if index == 7 && fields.bytes(at + 16, length)? == b"data" {
                let (offset, size) = (usize::from(fields.u16(at + 2)?), fields.u32(at + 8)?);
                return Ok(fields.bytes(first + offset, size as usize)?.to_vec());
            }
            at += 16 + length.next_multiple_of(4);
        }
        Ok(Vec::new())
    }
}
