//! VHD images, the format of Virtual PC and Hyper-V: fixed, dynamic and differencing disks.
//!
//! A fixed disk is the bytes of the disk, and a footer of 512 bytes behind them. A dynamic disk has
//! a copy of the footer at its start, a header, and a table with the place of each block. A block
//! begins with a bitmap of its sectors. In a differencing disk the bitmap says which sectors are
//! here and which are the parent's.

mod footer;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source, quoted};

use crate::block_map::{BlockMap, BlockPlace, MappedImage};
use crate::sector_bitmap::{BitOrder, SectorBitmaps};
use crate::{FormatInfo, Report};
use footer::{FOOTER, Footer, HEADER, Header, Kind, SECTOR};

/// What `auto` and `rbdkit-filter image` know of the format.
pub const INFO: FormatInfo =
    FormatInfo { name: "vhd", probe, report, open: |image| Ok(Rc::new(open(image, || Ok(None))?)) };

/// The entry of the table for a block that is not there.
const NOT_THERE: u32 = u32::MAX;

/// Bytes that an open image keeps of the table, 256 KiB. That is the table of 128 GiB with blocks
/// of 2 MiB. Of the bitmaps as much is kept, which are those of 1 GiB.
const KEPT: u32 = 256 << 10;

/// Text of a parent locator is shown up to this many bytes.
const MOST_LOCATOR: u32 = 1024;

/// An opened image.
pub type Image = MappedImage<Disk>;

/// The disk of an image.
pub struct Disk {
    image: Rc<dyn Source>,
    parent: Option<(Rc<dyn Source>, u64)>,
    footer: Footer,
    blocks: Option<Blocks>,
}

/// The blocks of a dynamic or differencing disk.
struct Blocks {
    header: Header,
    table: BlockCache,
    bitmaps: SectorBitmaps,
    /// Bytes of a block's bitmap.
    bitmap: u64,
    /// Where blocks must end: where the footer is, or the end of the image.
    end: u64,
}

/// Opens an image. `parent` gives the parent, if there is one; it is called for differencing disks
/// only.
///
/// # Errors
/// Those of the image and of `parent`. A line if the image is wrong, or needs a parent.
pub fn open(
    image: Rc<dyn Source>,
    parent: impl FnOnce() -> Result<Option<Rc<dyn Source>>, Error>,
) -> Result<Image, Error> {
    let footer = Footer::find(&*image)?;
    if footer.kind == Kind::Fixed {
        let before = image.size() - FOOTER;
        if footer.size > before {
            return Err(Error::image(format!(
                "the footer says a fixed disk of {} bytes, and the image has {before} before the footer",
                footer.size
            )));
        }
        return Ok(MappedImage(Disk { image, parent: None, footer, blocks: None }));
    }
    let header = Header::read(&*image, &footer)?;
    let mut the_parent = None;
    if footer.kind == Kind::Differencing {
        the_parent = parent()?.map(|parent| (parent, 0));
        if the_parent.is_none() {
            return Err(Error::image(format!(
                "the image is a differencing disk and names the parent {}: no file is opened by its name, give the \
                 parent with vhd-parent=",
                quoted(header.parent_name.as_bytes())
            )));
        }
    }
    let has_footer = footer::has_cookie(&*image, image.size() - FOOTER)?;
    let blocks = Blocks {
        table: BlockCache::new(Rc::clone(&image), 4096, KEPT),
        bitmaps: SectorBitmaps::new(&image, 512, BitOrder::HighFirst),
        bitmap: (header.block / SECTOR).div_ceil(8).next_multiple_of(SECTOR),
        end: image.size() - if has_footer { FOOTER } else { 0 },
        header,
    };
    Ok(MappedImage(Disk { image, parent: the_parent, footer, blocks: Some(blocks) }))
}

impl Blocks {
    /// Where a block's bitmap is, or nothing if the block is not there.
    fn find(&self, number: u64) -> Result<Option<u64>, Error> {
        let entry = u32::from_be_bytes(self.table.array(self.header.table + number * 4)?);
        if entry == NOT_THERE {
            return Ok(None);
        }
        let at = u64::from(entry) * SECTOR;
        let end = at + self.bitmap + self.header.block;
        if end > self.end {
            return Err(Error::image(format!(
                "the table says that block {number} ends at {end}, and the image has {} bytes for blocks",
                self.end
            )));
        }
        let table =
            (self.header.table, self.header.table.saturating_add(u64::from(self.header.entries) * 4), "the table");
        let header = (self.header.at, self.header.at + HEADER, "the header");
        let copy = (0, FOOTER, "the footer's copy");
        for (start, stop, what) in [copy, header, table] {
            if at < stop && start < end {
                return Err(Error::image(format!(
                    "the table says that block {number} is at {at}: {what} is there, from {start} to {stop}"
                )));
            }
        }
        Ok(Some(at))
    }
}

impl BlockMap for Disk {
    fn size(&self) -> u64 {
        self.footer.size
    }

    fn stored_in(&self) -> &dyn Source {
        &*self.image
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let Some(blocks) = &self.blocks else {
            return Ok((BlockPlace::Stored(offset), self.footer.size - offset));
        };
        let (number, within) = (offset / blocks.header.block, offset % blocks.header.block);
        let left = blocks.header.block - within;
        let Some(bitmap) = blocks.find(number)? else { return Ok((BlockPlace::Absent, left)) };
        let stored = BlockPlace::Stored(bitmap + blocks.bitmap + within);
        if self.footer.kind != Kind::Differencing {
            return Ok((stored, left));
        }
        let (is_here, alike) = blocks.bitmaps.alike(bitmap, within / SECTOR, left.div_ceil(SECTOR))?;
        Ok((if is_here { stored } else { BlockPlace::Absent }, alike * SECTOR - within % SECTOR))
    }

    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        self.parent.as_ref()
    }

    fn is_fixed(&self) -> bool {
        self.footer.kind == Kind::Fixed
    }

    fn description(&self) -> Option<String> {
        Some(format!("VHD image, {}", self.footer.kind.name()))
    }
}

fn probe(image: &dyn Source) -> Result<bool, Error> {
    let end = image.size().saturating_sub(FOOTER);
    Ok(footer::has_cookie(image, end)? || footer::has_cookie(image, 0)?)
}

fn report(image: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let footer = match Footer::find(&**image) {
        Ok(footer) => footer,
        Err(Error::Image(line)) => {
            report.danger(line);
            return Ok(report);
        }
        Err(failed) => return Err(failed),
    };
    report.size = Some(footer.size);
    report.fact("type", footer.kind.name());
    report.fact("creator", footer.creator_name());
    let (cylinders, heads, sectors) = footer.geometry;
    report.fact("geometry", format!("{cylinders} cylinders, {heads} heads, {sectors} sectors"));
    report.fact("size from", if footer.size_is_geometry { "the geometry" } else { "the footer" });
    if footer.size_is_geometry && footer.current_size != footer.size {
        report.danger(format!(
            "programs may disagree on the size: the geometry says {} bytes, the footer {}",
            footer.size, footer.current_size
        ));
    }
    if footer.kind == Kind::Fixed {
        if footer::has_cookie(&**image, 0)? && image.size() > FOOTER {
            report.danger("the fixed disk begins with a VHD header: other programs may read it as a dynamic image");
        }
        return Ok(report);
    }
    let header = match Header::read(&**image, &footer) {
        Ok(header) => header,
        Err(Error::Image(line)) => {
            report.danger(line);
            return Ok(report);
        }
        Err(failed) => return Err(failed),
    };
    report.fact("block size", header.block);
    if footer.kind == Kind::Differencing {
        report.danger(format!("it names a parent: {}", quoted(header.parent_name.as_bytes())));
        for (at, length) in header.locators {
            let length = length.min(MOST_LOCATOR) as usize;
            match rbdkit_filter_sdk::image::read(&**image, at, length) {
                Ok(text) => report.danger(format!("it names a parent: {}", quoted(locator(&text).as_bytes()))),
                Err(Error::Image(line)) => report.danger(format!("a parent locator is wrong: {line}")),
                Err(failed) => return Err(failed),
            }
        }
    }
    Ok(report)
}

/// The text of a locator: UTF-16 little endian for Windows, which has a zero byte in each ASCII
/// character, and UTF-8 for others.
fn locator(text: &[u8]) -> String {
    if text.len() < 2 || text[1] != 0 {
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        return String::from_utf8_lossy(&text[..end]).into_owned();
    }
    let units: Vec<u16> = text.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default())
}
