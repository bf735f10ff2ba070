//! The metadata: the sizes of the disk, its blocks and its sectors, and where the parent is named.

use std::ops::Range;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use crate::guid::Guid;

/// Bytes of the table. Items are behind it.
const TABLE: u64 = 64 << 10;

/// A table has at most so many entries: more do not fit.
const MOST_ENTRIES: u16 = 2047;

/// The largest item in bytes.
const MOST_ITEM: u32 = 1 << 20;

/// The largest disk in bytes, 64 TiB.
const MOST_DISK: u64 = 64 << 40;

/// The smallest and the largest block in bytes.
const BLOCKS: (u32, u32) = (1 << 20, 256 << 20);

const FILE_PARAMETERS: Guid = Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const DISK_ID: Guid = Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: Guid = Guid::new(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = Guid::new(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: Guid = Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// The items that are known, and their names for people.
const KNOWN: [(Guid, &str); 6] = [
    (FILE_PARAMETERS, "the file parameters"),
    (DISK_SIZE, "the size of the disk"),
    (DISK_ID, "the identifier of the disk"),
    (LOGICAL_SECTOR, "the logical sector size"),
    (PHYSICAL_SECTOR, "the physical sector size"),
    (PARENT_LOCATOR, "the parent locator"),
];

/// What a disk's type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        }
    }
}

/// What the metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxMetadata {
    pub disk_type: DiskType,
    /// Whether a block that has a place keeps it.
    pub leaves_blocks: bool,
    /// Bytes of a block, a power of two.
    pub block: u64,
    /// Bytes of the disk, a multiple of `sector`.
    pub size: u64,
    /// Bytes of a logical sector, 512 or 4096.
    pub sector: u64,
    /// Bytes of a physical sector, 512 or 4096.
    pub physical_sector: u32,
    /// What the disk calls itself, as SCSI's page 83.
    pub id: Guid,
    /// Where the parent locator is, of a differencing disk.
    pub locator: Option<Range<u64>>,
}

/// Where the items are, in the order of [`KNOWN`].
struct Items([Option<Range<u64>>; KNOWN.len()]);

impl Items {
    /// Reads the table of the region.
    fn read(image: &dyn Source, region: &Range<u64>) -> Result<Items, Error> {
        // A region has at least 1 MiB.
        let bytes = image::read(image, region.start, TABLE as usize)?;
        let fields = Fields::little(&bytes, "the metadata table");
        if fields.bytes(0, 8)? != b"metadata" {
            return Err(Error::image(format!("the metadata at {} does not begin with 'metadata'", region.start)));
        }
        let count = fields.u16(10)?;
        if count > MOST_ENTRIES {
            return Err(Error::image(format!("the metadata table says {count} items: it has at most {MOST_ENTRIES}")));
        }
        let (mut items, mut all) = (Items(Default::default()), Vec::new());
        for n in 0..usize::from(count) {
            let at = 32 + n * 32;
            let (guid, offset, length, bits) =
                (Guid::read(fields, at)?, fields.u32(at + 16)?, fields.u32(at + 20)?, fields.u32(at + 24)?);
            let (is_user, is_required) = (bits & 1 != 0, bits & 4 != 0);
            let range = item(region, guid, offset, length)?;
            let known = KNOWN.iter().position(|(known, _)| *known == guid && !is_user);
            if known.is_none() && is_required {
                return Err(Error::image(format!("the image needs metadata that is not known: {guid}")));
            }
            if let Some(known) = known
                && items.0[known].replace(range.clone()).is_some()
            {
                return Err(Error::image(format!("the metadata table has {} twice", KNOWN[known].1)));
            }
            if !range.is_empty() {
                all.push((range, guid));
            }
        }
        all.sort_by_key(|(range, _)| range.start);
        let over = all.array_windows().find(|[(one, _), (other, _)]| one.end > other.start);
        if let Some([(one, first), (other, second)]) = over {
            return Err(Error::image(format!(
                "{} and {} overlap: one ends at {} of the metadata, and the other begins at {}",
                name(*first),
                name(*second),
                one.end - region.start,
                other.start - region.start
            )));
        }
        Ok(items)
    }

    fn place(&self, guid: Guid) -> Option<&Range<u64>> {
        let at = KNOWN.iter().position(|(known, _)| *known == guid)?;
        self.0[at].as_ref()
    }

    /// The first `N` bytes of an item.
    fn bytes<const N: usize>(&self, image: &dyn Source, guid: Guid) -> Result<[u8; N], Error> {
        let Some(range) = self.place(guid) else {
            return Err(Error::image(format!("the metadata does not have {}", name(guid))));
        };
        let length = range.end - range.start;
        if length < N as u64 {
            return Err(Error::image(format!("{} has {length} bytes: it must have {N}", name(guid))));
        }
        let mut bytes = [0; N];
        image.read(range.start, &mut bytes)?;
        Ok(bytes)
    }
}

/// An item for people.
fn name(guid: Guid) -> String {
    let known = KNOWN.iter().find(|(known, _)| *known == guid);
    known.map_or_else(|| format!("the item {guid}"), |(_, name)| (*name).into())
}

/// Where an item is.
///
/// # Errors
/// A line if it cannot be there.
fn item(region: &Range<u64>, guid: Guid, offset: u32, length: u32) -> Result<Range<u64>, Error> {
    if length == 0 {
        return Ok(region.start..region.start);
    }
    let (from, size) = (u64::from(offset), region.end - region.start);
    if from < TABLE || from + u64::from(length) > size || length > MOST_ITEM {
        return Err(Error::image(format!(
            "{} has {length} bytes at {offset} of the metadata: items have at most {MOST_ITEM} bytes and lie from \
             {TABLE} to {size}",
            name(guid)
        )));
    }
    Ok(region.start + from..region.start + from + u64::from(length))
}

/// The size of a sector.
///
/// # Errors
/// A line if there are no such sectors.
fn sector(bytes: [u8; 4], guid: Guid) -> Result<u32, Error> {
    match u32::from_le_bytes(bytes) {
        size @ (512 | 4096) => Ok(size),
        other => Err(Error::image(format!("{} is {other} bytes: it must be 512 or 4096", name(guid)))),
    }
}

impl VhdxMetadata {
    /// Reads the metadata of a region.
    ///
    /// # Errors
    /// Those of the image. A line if the metadata is wrong or has what is not supported.
    pub fn read(image: &dyn Source, region: &Range<u64>) -> Result<VhdxMetadata, Error> {
        let items = Items::read(image, region)?;
        let parameters: [u8; 8] = items.bytes(image, FILE_PARAMETERS)?;
        let fields = Fields::little(&parameters, "the file parameters");
        let (block, flags) = (fields.u32(0)?, fields.u32(4)?);
        if !block.is_power_of_two() || !(BLOCKS.0..=BLOCKS.1).contains(&block) {
            return Err(Error::image(format!(
                "the image has blocks of {block} bytes: it must be a power of two from {} to {}",
                BLOCKS.0, BLOCKS.1
            )));
        }
        let (leaves_blocks, has_parent) = (flags & 1 != 0, flags & 2 != 0);
        let disk_type = match (has_parent, leaves_blocks) {
            (true, _) => DiskType::Differencing,
            (_, true) => DiskType::Fixed,
            _ => DiskType::Dynamic,
        };
        let logical = u64::from(sector(items.bytes(image, LOGICAL_SECTOR)?, LOGICAL_SECTOR)?);
        let physical_sector = sector(items.bytes(image, PHYSICAL_SECTOR)?, PHYSICAL_SECTOR)?;
        let size = u64::from_le_bytes(items.bytes(image, DISK_SIZE)?);
        if size > MOST_DISK || !size.is_multiple_of(logical) {
            return Err(Error::image(format!(
                "the disk has {size} bytes: it must be a multiple of its sectors of {logical}, and at most {MOST_DISK}"
            )));
        }
        let locator = match (has_parent, items.place(PARENT_LOCATOR)) {
            (false, _) => None,
            (true, Some(range)) => Some(range.clone()),
            (true, None) => {
                return Err(Error::image(format!("a differencing disk must have {}", name(PARENT_LOCATOR))));
            }
        };
        let id = Guid(items.bytes(image, DISK_ID)?);
        let block = block.into();
        Ok(VhdxMetadata { disk_type, leaves_blocks, block, size, sector: logical, physical_sector, id, locator })
    }
}
