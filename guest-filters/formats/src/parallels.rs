//! Disk images of Parallels: a header of 64 bytes, a table with a number for each cluster, and the
//! clusters.
//!
//! All numbers are little-endian. In the older format (`WithoutFreeSpace`) the table counts sectors
//! of the file, in the newer one (`WithouFreSpacExt`) clusters. 0 is a cluster that was never
//! written.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, Source, quoted, read};

use crate::block_map::{self, BlockMap, BlockPlace, MappedImage, check_block, check_table};
use crate::{FormatInfo, Report};

/// The format.
pub const INFO: FormatInfo = FormatInfo {
    name: "parallels",
    probe,
    report,
    open: |below| Parallels::open(below).map(|image| Rc::new(image) as Rc<dyn Source>),
};

/// An image of Parallels.
pub type Parallels = MappedImage<ParallelsClusters>;

const OLD: &[u8; 16] = b"WithoutFreeSpace";
const NEW: &[u8; 16] = b"WithouFreSpacExt";

const HEADER: u64 = 64;

/// What the field `inuse` has while a program writes the image.
const IN_USE: u32 = 0x746f_6e59;

/// In sectors: 1 GiB. Parallels makes 1 MiB.
const MAX_CLUSTER: u32 = 1 << 21;

/// How much of a file `DiskDescriptor.xml` is looked at, in bytes.
const MOST_TEXT: u64 = 64 << 10;

fn probe(below: &dyn Source) -> Result<bool, Error> {
    Ok(is_image(below)? || description(below)?.is_some())
}

fn is_image(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < HEADER {
        return Ok(false);
    }
    let mut magic = [0; 16];
    below.read(0, &mut magic)?;
    Ok(magic == *OLD || magic == *NEW)
}

/// The start of a `DiskDescriptor.xml`, which describes a disk of several files. None of another
/// file.
fn description(below: &dyn Source) -> Result<Option<Vec<u8>>, Error> {
    const START: &[u8] = b"<?xml";
    const ROOT: &[u8] = b"<Parallels_disk_image";
    if below.size() < START.len() as u64 || read(below, 0, START.len())? != START {
        return Ok(None);
    }
    let text = read(below, 0, below.size().min(MOST_TEXT) as usize)?;
    Ok(find(&text, ROOT).map(|_| text))
}

/// Where `what` is in a text.
fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|place| place == what)
}

/// The line that refuses a `DiskDescriptor.xml`. It quotes the first file that the text names.
fn refusal(text: &[u8]) -> Error {
    const OPEN: &[u8] = b"<File>";
    let name = find(text, OPEN).map(|at| &text[at + OPEN.len()..]);
    let name = name.and_then(|rest| rest.split(|byte| *byte == b'<').next()).unwrap_or_default();
    Error::image(format!(
        "this is a DiskDescriptor.xml, which only describes a Parallels disk: serve the image itself, whose first file \
         it calls {}",
        quoted(name)
    ))
}

/// What the header says.
struct ParallelsHeader {
    is_new: bool,
    version: u32,
    /// In sectors.
    cluster: u32,
    clusters: u32,
    sectors: u64,
    in_use: bool,
    /// In sectors, 0 without extensions.
    extensions: u64,
}

impl ParallelsHeader {
    fn read(below: &dyn Source) -> Result<ParallelsHeader, Error> {
        if let Some(text) = description(below)? {
            return Err(refusal(&text));
        }
        if !is_image(below)? {
            return Err(Error::image(
                "it is not a Parallels image: it does not begin with WithoutFreeSpace or WithouFreSpacExt",
            ));
        }
        let bytes = read(below, 0, HEADER as usize)?;
        let fields = Fields::little(&bytes, "the header");
        let is_new = fields.bytes(0, 16)? == NEW;
        // The older format has a number of 32 bits there, and anything behind it.
        let sectors = if is_new { fields.u64(36)? } else { fields.u32(36)?.into() };
        Ok(ParallelsHeader {
            is_new,
            version: fields.u32(16)?,
            cluster: fields.u32(28)?,
            clusters: fields.u32(32)?,
            sectors,
            in_use: fields.u32(44)? == IN_USE,
            extensions: if is_new { fields.u64(56)? } else { 0 },
        })
    }

    /// Returns the size of the disk.
    ///
    /// # Errors
    /// A line that says what is wrong.
    fn check(&self, below: &dyn Source) -> Result<u64, Error> {
        let fail = |line: String| Err(Error::Image(line));
        if self.version != 2 {
            return fail(format!("version {} of Parallels' format is not supported: 2 is", self.version));
        }
        if self.cluster == 0 || self.cluster > MAX_CLUSTER {
            return fail(format!(
                "clusters of {} sectors are not supported: 1 to {MAX_CLUSTER} sectors are",
                self.cluster
            ));
        }
        let holds = u64::from(self.clusters) * u64::from(self.cluster);
        if self.sectors > holds {
            return fail(format!(
                "the disk has {} sectors, and its {} clusters of {} sectors hold {holds}",
                self.sectors, self.clusters, self.cluster
            ));
        }
        check_table(below, "the table of clusters", HEADER, u64::from(self.clusters) * 4)?;
        // At most 2^32 clusters of 2^21 sectors.
        Ok(self.sectors * 512)
    }

    fn magic(&self) -> &'static str {
        if self.is_new { "WithouFreSpacExt" } else { "WithoutFreeSpace" }
    }
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let header = ParallelsHeader::read(&**below)?;
    let mut report = Report { size: header.sectors.checked_mul(512), ..Report::default() };
    report.fact("format", header.magic());
    report.fact("cluster size", u64::from(header.cluster) * 512);
    report.fact("clusters", header.clusters);
    report.fact("in use", if header.in_use { "yes" } else { "no" });
    if header.extensions != 0 {
        report.fact("extensions at sector", header.extensions);
    }
    if header.in_use {
        report.danger("it was not closed by the program that wrote it: its last writes may be missing");
    }
    if let Err(Error::Image(line)) = header.check(&**below) {
        report.danger(format!("it cannot be read: {line}"));
    }
    Ok(report)
}

/// Where the clusters are.
pub struct ParallelsClusters {
    tables: BlockCache,
    header: ParallelsHeader,
    size: u64,
}

impl Parallels {
    /// Opens an image.
    ///
    /// # Errors
    /// Those of the source. A line if the image is wrong or not supported.
    pub fn open(below: Rc<dyn Source>) -> Result<Parallels, Error> {
        let header = ParallelsHeader::read(&*below)?;
        let size = header.check(&*below)?;
        Ok(MappedImage(ParallelsClusters { tables: block_map::table_cache(&below), header, size }))
    }

    /// Whether the program that wrote the image has not closed it.
    pub fn is_in_use(&self) -> bool {
        self.0.header.in_use
    }
}

impl BlockMap for ParallelsClusters {
    fn size(&self) -> u64 {
        self.size
    }

    fn stored_in(&self) -> &dyn Source {
        &**self.tables.source()
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let cluster = u64::from(self.header.cluster) * 512;
        let (number, within) = (offset / cluster, offset % cluster);
        let entry = u64::from(u32::from_le_bytes(self.tables.array(HEADER + number * 4)?));
        let place = if entry == 0 {
            BlockPlace::Absent
        } else {
            let at = entry * if self.header.is_new { cluster } else { 512 };
            check_block(self.stored_in(), || format!("cluster {number}"), at)?;
            BlockPlace::Stored(at + within)
        };
        Ok((place, cluster - within))
    }

    fn description(&self) -> Option<String> {
        let state = if self.header.in_use { ", not closed" } else { "" };
        Some(format!("Parallels image, {}{state}", self.header.magic()))
    }
}

#[cfg(test)]
mod tests;
