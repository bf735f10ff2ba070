//! Growing disk images of Bochs: a header, a catalog with a number for each extent, and the
//! extents, each behind a bitmap of the sectors in it that were written.
//!
//! All numbers are little-endian. `bximage` makes such images.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, Source, quoted, read};

use crate::block_map::{self, BlockMap, BlockPlace, MappedImage, check_block, check_table};
use crate::{FormatInfo, Report};

/// The format.
pub const INFO: FormatInfo = FormatInfo {
    name: "bochs",
    probe,
    report,
    open: |below| Bochs::open(below).map(|image| Rc::new(image) as Rc<dyn Source>),
};

/// A growing image of Bochs.
pub type Bochs = MappedImage<BochsExtents>;

const MAGIC: &[u8; 23] = b"Bochs Virtual HD Image\0";

/// All versions together have fields in the first 96 bytes of 512.
const HEADER: usize = 512;

/// The entry of an extent that was never written.
const ABSENT: u32 = 0xffff_ffff;

/// Sizes of an extent that are accepted, in bytes, as in qemu. The bitmap of the largest has 2 KiB.
const MIN_EXTENT: u32 = 512;
const MAX_EXTENT: u32 = 8 << 20;

fn probe(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < HEADER as u64 {
        return Ok(false);
    }
    let mut magic = [0; 23];
    below.read(0, &mut magic)?;
    Ok(magic == *MAGIC)
}

/// What the header says.
struct BochsHeader {
    kind: Vec<u8>,
    subtype: Vec<u8>,
    version: u32,
    /// Where the catalog is.
    length: u32,
    catalog: u32,
    bitmap: u32,
    extent: u32,
    disk: u64,
}

impl BochsHeader {
    fn read(below: &dyn Source) -> Result<BochsHeader, Error> {
        if !probe(below)? {
            return Err(Error::image("it is not a Bochs image: it does not begin with 'Bochs Virtual HD Image'"));
        }
        let bytes = read(below, 0, HEADER)?;
        let fields = Fields::little(&bytes, "the header");
        let version = fields.u32(64)?;
        Ok(BochsHeader {
            kind: fields.text(32, 16)?.to_vec(),
            subtype: fields.text(48, 16)?.to_vec(),
            version,
            length: fields.u32(68)?,
            catalog: fields.u32(72)?,
            bitmap: fields.u32(76)?,
            extent: fields.u32(80)?,
            // Version 2 has a time before it.
            disk: fields.u64(if version == 0x1_0000 { 84 } else { 88 })?,
        })
    }

    /// # Errors
    /// A line that says what is wrong.
    fn check(&self, below: &dyn Source) -> Result<(), Error> {
        let fail = |line: String| Err(Error::Image(line));
        if self.kind != b"Redolog" {
            return fail(format!("images of the type {} are not supported: Redolog is", quoted(&self.kind)));
        }
        if self.subtype != b"Growing" {
            return fail(format!(
                "images of the subtype {} are not supported: they hold only what differs from another image",
                quoted(&self.subtype)
            ));
        }
        if !matches!(self.version, 0x1_0000 | 0x2_0000) {
            return fail(format!(
                "version {:#x} of Bochs' format is not supported: 0x10000 and 0x20000 are",
                self.version
            ));
        }
        if !self.extent.is_power_of_two() || !(MIN_EXTENT..=MAX_EXTENT).contains(&self.extent) {
            return fail(format!(
                "extents of {} bytes are not supported: a power of two from {MIN_EXTENT} to {MAX_EXTENT} is",
                self.extent
            ));
        }
        if u64::from(self.bitmap) * 8 < u64::from(self.extent / 512) {
            return fail(format!(
                "bitmaps of {} bytes are too small for extents of {} sectors",
                self.bitmap,
                self.extent / 512
            ));
        }
        let holds = u64::from(self.catalog) * u64::from(self.extent);
        if self.disk > holds {
            return fail(format!(
                "the disk has {} bytes, and its {} extents of {} bytes hold {holds}",
                self.disk, self.catalog, self.extent
            ));
        }
        check_table(below, "the catalog", self.length.into(), u64::from(self.catalog) * 4)
    }
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let header = BochsHeader::read(&**below)?;
    let mut report = Report { size: Some(header.disk / 512 * 512), ..Report::default() };
    report.fact("type", quoted(&header.kind));
    report.fact("subtype", quoted(&header.subtype));
    report.fact("version", format!("{:#x}", header.version));
    report.fact("extent size", header.extent);
    report.fact("extents", header.catalog);
    if matches!(&header.subtype[..], b"Undoable" | b"Volatile") {
        report.danger("it holds only what differs from another image");
    }
    if let Err(Error::Image(line)) = header.check(&**below) {
        report.danger(format!("it cannot be read: {line}"));
    }
    Ok(report)
}

/// Where the sectors are.
pub struct BochsExtents {
    tables: BlockCache,
    catalog_at: u64,
    /// Behind the catalog.
    extents_at: u64,
    extent: u64,
    /// Bytes of an extent's bitmap in the file: whole sectors.
    bitmap: u64,
    size: u64,
}

impl Bochs {
    /// Opens an image.
    ///
    /// # Errors
    /// Those of the source. A line if the image is wrong or not supported.
    pub fn open(below: Rc<dyn Source>) -> Result<Bochs, Error> {
        let header = BochsHeader::read(&*below)?;
        header.check(&*below)?;
        Ok(MappedImage(BochsExtents {
            catalog_at: header.length.into(),
            extents_at: u64::from(header.length) + u64::from(header.catalog) * 4,
            extent: header.extent.into(),
            bitmap: u64::from(header.bitmap).next_multiple_of(512),
            // As in Bochs and qemu, a disk has whole sectors.
            size: header.disk / 512 * 512,
            tables: block_map::table_cache(&below),
        }))
    }
}

impl BlockMap for BochsExtents {
    fn size(&self) -> u64 {
        self.size
    }

    fn stored_in(&self) -> &dyn Source {
        &**self.tables.source()
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let (number, within) = (offset / self.extent, offset % self.extent);
        let entry = u32::from_le_bytes(self.tables.array(self.catalog_at + number * 4)?);
        if entry == ABSENT {
            return Ok((BlockPlace::Absent, self.extent - within));
        }
        // Of 2^32 extents each has less than 2^33 bytes with its bitmap: the sum may be too large.
        let at = u64::from(entry).checked_mul(self.bitmap + self.extent).and_then(|at| at.checked_add(self.extents_at));
        let at = at.unwrap_or(u64::MAX);
        check_block(self.stored_in(), || format!("extent {number}"), at)?;
        let (first, sectors) = (within / 512, self.extent / 512);
        let is_written = self.bit(at, first)?;
        let mut next = first + 1;
        while next < sectors && self.bit(at, next)? == is_written {
            next += 1;
        }
        let place = if is_written { BlockPlace::Stored(at + self.bitmap + within) } else { BlockPlace::Absent };
        Ok((place, next * 512 - within))
    }

    fn description(&self) -> Option<String> {
        Some("Bochs image, growing".into())
    }
}

impl BochsExtents {
    /// Whether a sector of the extent whose bitmap is at `at` was written.
    fn bit(&self, at: u64, sector: u64) -> Result<bool, Error> {
        let [byte] = self.tables.array(at + sector / 8)?;
        Ok(byte >> (sector % 8) & 1 == 1)
    }
}

#[cfg(test)]
mod tests;
