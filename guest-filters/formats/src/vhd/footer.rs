//! The footer and the header of a dynamic disk: parsing and checks.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

/// Bytes of the footer.
pub const FOOTER: u64 = 512;

/// Bytes of the header of a dynamic or differencing disk.
pub const HEADER: u64 = 1024;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// The largest disk in bytes, 2040 GiB: what Virtual PC and Hyper-V allow, and qemu.
pub const MOST: u64 = 2040 << 30;

/// The largest geometry in sectors. A disk that has it is as large as the footer's size says.
const MOST_GEOMETRY: u64 = 65535 * 16 * 255;

/// The size of the disk is the footer's current size if one of these programs has made the image.
/// Otherwise it is the geometry's. These are the names that qemu knows.
const SIZE_HOLDS: [(&[u8; 4], &str); 6] = [
    (b"win ", "Hyper-V"),
    (b"qem2", "qemu with force_size"),
    (b"d2v ", "Disk2vhd"),
    (b"CTXS", "XenConverter"),
    (b"tap\0", "XenServer"),
    (b"wa\0\0", "Azure"),
];

/// What a disk's type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        }
    }
}

/// A footer whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    pub kind: Kind,
    /// The size of the disk in bytes.
    pub size: u64,
    /// Whether the geometry says the size, and not the footer's current size.
    pub size_is_geometry: bool,
    /// Cylinders, heads, and sectors of a track.
    pub geometry: (u16, u8, u8),
    /// What the footer calls the current size.
    pub current_size: u64,
    /// The program that made the image.
    pub creator: [u8; 4],
    /// Where the header of a dynamic disk is.
    header: u64,
}

/// Whether there is a footer at `offset`, right or wrong.
pub fn has_cookie(image: &dyn Source, offset: u64) -> Result<bool, Error> {
    if offset.checked_add(FOOTER).is_none_or(|end| end > image.size()) {
        return Ok(false);
    }
    Ok(image::read(image, offset, 8)? == b"conectix")
}

/// The sum of all bytes but the four of the checksum, complemented.
pub fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = bytes.iter().enumerate().filter(|(n, _)| !(at..at + 4).contains(n));
    !sum.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

fn check_sum(bytes: &[u8], at: usize, what: &str) -> Result<(), Error> {
    let (stored, right) = (Fields::big(bytes, what).u32(at)?, checksum(bytes, at));
    if stored == right {
        return Ok(());
    }
    Err(Error::image(format!("the checksum of {what} is {stored:#010x}, and its bytes give {right:#010x}")))
}

impl Footer {
    fn parse(bytes: &[u8], what: &str) -> Result<Footer, Error> {
        let fields = Fields::big(bytes, what);
        check_sum(bytes, 64, what)?;
        let version = fields.u32(12)?;
        if version >> 16 != 1 {
            return Err(Error::image(format!("{what} has version {:#x}: 0x10000 is supported", version)));
        }
        let kind = match fields.u32(60)? {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                return Err(Error::image(format!(
                    "{what} has disk type {other}: 2 (fixed), 3 (dynamic) and 4 (differencing) are supported"
                )));
            }
        };
        let mut creator = [0; 4];
        creator.copy_from_slice(fields.bytes(28, 4)?);
        let geometry = (fields.u16(56)?, fields.u8(58)?, fields.u8(59)?);
        let sectors = u64::from(geometry.0) * u64::from(geometry.1) * u64::from(geometry.2);
        let current_size = fields.u64(48)?;
        let size_is_geometry = !SIZE_HOLDS.iter().any(|(name, _)| **name == creator) && sectors != MOST_GEOMETRY;
        let size = if size_is_geometry { sectors * SECTOR } else { current_size / SECTOR * SECTOR };
        if size > MOST {
            return Err(Error::image(format!("{what} says {size} bytes: a VHD has at most {MOST} (2040 GiB)")));
        }
        Ok(Footer { kind, size, size_is_geometry, geometry, current_size, creator, header: fields.u64(16)? })
    }

    /// The footer that holds: the one at the end of the image. A dynamic image that was cut, or
    /// written by Virtual PC before 2004, may lack it. Then its copy at the start holds.
    ///
    /// A fixed disk has no copy: what is at its start was written by whoever used the disk.
    pub fn find(image: &dyn Source) -> Result<Footer, Error> {
        let end = image.size().saturating_sub(FOOTER);
        let (at_end, at_start) = (has_cookie(image, end)?, has_cookie(image, 0)?);
        let first = || Footer::parse(&image::read(image, 0, FOOTER as usize)?, "the footer's copy at the start");
        if !at_end {
            if !at_start {
                return Err(Error::image("it is not a VHD image: no footer begins with conectix"));
            }
            let copy = first()?;
            if copy.kind == Kind::Fixed {
                return Err(Error::image("the image has no footer at its end, and a fixed disk must have it there"));
            }
            return Ok(copy);
        }
        let footer = Footer::parse(&image::read(image, end, FOOTER as usize)?, "the footer")?;
        if footer.kind == Kind::Fixed {
            return Ok(footer);
        }
        if !at_start {
            return Err(Error::image(format!(
                "the footer says a {} disk, and its copy is not at the start",
                footer.kind.name()
            )));
        }
        if first()? != footer {
            return Err(Error::image("the footer and its copy at the start say different things"));
        }
        Ok(footer)
    }

    /// The name of the program that made the image, for people.
    pub fn creator_name(&self) -> String {
        let known = SIZE_HOLDS.iter().find(|(name, _)| **name == self.creator).map(|(_, program)| *program);
        let text = quoted(self.creator.split(|byte| *byte == 0).next().unwrap_or_default());
        known.map_or(text.clone(), |program| format!("{text} ({program})"))
    }
}

/// The header of a dynamic or differencing disk.
#[derive(Debug)]
pub struct Header {
    /// Where it is.
    pub at: u64,
    /// Where the table of the blocks is.
    pub table: u64,
    /// How many blocks the table has.
    pub entries: u32,
    /// Bytes of a block, a power of two.
    pub block: u64,
    /// The name of the parent, as UTF-8.
    pub parent_name: String,
    /// Where texts with other names of the parent are: offset and length.
    pub locators: Vec<(u64, u32)>,
}

impl Header {
    pub fn read(image: &dyn Source, footer: &Footer) -> Result<Header, Error> {
        let at = footer.header;
        if at.checked_add(HEADER).is_none_or(|end| end > image.size()) {
            return Err(Error::image(format!(
                "the footer says that the header is at {at}, and the image ends after {} bytes",
                image.size()
            )));
        }
        let bytes = image::read(image, at, HEADER as usize)?;
        let fields = Fields::big(&bytes, "the header");
        if fields.bytes(0, 8)? != b"cxsparse" {
            return Err(Error::image(format!("the header at {at} does not begin with cxsparse")));
        }
        check_sum(&bytes, 36, "the header")?;
        let version = fields.u32(24)?;
        if version >> 16 != 1 {
            return Err(Error::image(format!("the header has version {version:#x}: 0x10000 is supported")));
        }
        let block = u64::from(fields.u32(32)?);
        if !block.is_power_of_two() || block < SECTOR {
            return Err(Error::image(format!(
                "the header says blocks of {block} bytes: it must be a power of two of at least {SECTOR}"
            )));
        }
        let (table, entries) = (fields.u64(16)?, fields.u32(28)?);
        if u64::from(entries).saturating_mul(block) < footer.size {
            return Err(Error::image(format!(
                "the table has {entries} blocks of {block} bytes, and the disk has {} bytes",
                footer.size
            )));
        }
        let needed = footer.size.div_ceil(block) * 4;
        if table.checked_add(needed).is_none_or(|end| end > image.size()) {
            return Err(Error::image(format!(
                "the header says that the table is at {table}, and the image ends after {} bytes",
                image.size()
            )));
        }
        let name: Vec<u16> =
            fields.bytes(64, 512)?.chunks_exact(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect();
        let name = name.split(|unit| *unit == 0).next().unwrap_or_default();
        let mut locators = Vec::new();
        for n in 0..8 {
            let at = 576 + n * 24;
            if fields.u32(at)? != 0 {
                locators.push((fields.u64(at + 16)?, fields.u32(at + 8)?));
            }
        }
        let parent_name = String::from_utf16_lossy(name);
        Ok(Header { at, table, entries, block, parent_name, locators })
    }
}
