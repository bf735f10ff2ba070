//! FAT12, FAT16 and FAT32: a file inside the file system.

mod chain;
mod directory;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, BlockCache, Error, Fields, Source, quoted};

use crate::mapped::Mapped;
use crate::paths::{self, DirectoryBudget, Kind, Tree};
use crate::{FormatInfo, Report};
use chain::{Chain, Table, Width};
use directory::Entry;

/// The format.
pub const INFO: FormatInfo = FormatInfo { name: "fat", probe, report, open };

/// A file that was opened.
pub type File = Mapped<Chain>;

/// Bytes of the table that are kept.
const KEPT: u32 = 1 << 20;

/// A directory has at most 65536 entries of 32 bytes.
const MOST_DIRECTORY: u64 = 2 << 20;

/// Opens the file with this path.
///
/// # Errors
/// Those of the source. A line if there is no such file, or if the file system is wrong.
pub fn open_file(below: Rc<dyn Source>, path: &str) -> Result<File, Error> {
    let boot = Boot::read(&*below)?;
    let width = boot.name();
    let system = System::new(below, boot);
    let Some(entry) = paths::find(&system, path)? else {
        return Err(Error::image("the root is a directory, and no file"));
    };
    let text = format!("{} in a {width} file system", quoted(path.as_bytes()));
    let table = Rc::clone(&system.table);
    let chain = match entry.size {
        0 => Chain::empty(table),
        size => Chain::new(table, entry.name.as_bytes(), system.first(&entry), size)?,
    };
    Ok(Mapped::new(system.below, chain).described(text))
}

/// The boot sector, checked.
struct Boot {
    sector: u64,
    cluster: u64,
    /// Where the table that is used begins, in bytes.
    table: u64,
    /// Where the root directory of FAT12 and FAT16 begins, and how long it is, in bytes.
    root: (u64, u64),
    root_cluster: u32,
    data: u64,
    clusters: u32,
    width: Width,
    /// In bytes.
    size: u64,
    label: Vec<u8>,
    is_dirty: bool,
}

/// The name of a file system that has a boot sector like FAT's and is none.
fn other_name(sector: &[u8]) -> Option<&'static str> {
    match sector.get(3..11) {
        Some(b"EXFAT   ") => Some("exFAT"),
        Some(b"NTFS    ") => Some("NTFS"),
        _ => None,
    }
}

fn probe(source: &dyn Source) -> Result<bool, Error> {
    if source.size() < 512 {
        return Ok(false);
    }
    let sector = image::read(source, 0, 512)?;
    let fields = Fields::little(&sector, "the boot sector");
    if fields.u16(510)? != 0xaa55 {
        return Ok(false);
    }
    if other_name(&sector).is_some() {
        return Ok(true);
    }
    let (bytes, sectors, media) = (fields.u16(11)?, fields.u8(13)?, fields.u8(21)?);
    let jumps = sector[0] == 0xe9 || sector[0] == 0xeb && sector[2] == 0x90;
    let has_sizes = [512, 1024, 2048, 4096].contains(&bytes) && sectors.is_power_of_two();
    let has_tables = fields.u16(14)? > 0 && (1..=4).contains(&fields.u8(16)?);
    Ok(jumps && has_sizes && has_tables && (media == 0xf0 || media >= 0xf8))
}

impl Boot {
    fn read(source: &dyn Source) -> Result<Boot, Error> {
        if !probe(source)? {
            return Err(Error::image("it is not a FAT file system: it has no boot sector of one"));
        }
        let bytes = image::read(source, 0, 512)?;
        if let Some(name) = other_name(&bytes) {
            return Err(Error::image(format!("this is an {name} file system; only FAT12, FAT16 and FAT32 are read")));
        }
        let fields = Fields::little(&bytes, "the boot sector");
        let number = |at| fields.u16(at).map(u64::from);
        let either = |narrow, wide| match number(narrow)? {
            0 => fields.u32(wide).map(u64::from),
            value => Ok(value),
        };
        let sector = number(11)?;
        let per_cluster = u64::from(fields.u8(13)?);
        let (reserved, tables) = (number(14)?, u64::from(fields.u8(16)?));
        let (sectors, table_sectors) = (either(19, 32)?, either(22, 36)?);
        let root_sectors = (number(17)? * 32).div_ceil(sector);
        let data = reserved + tables * table_sectors + root_sectors;
        if sectors <= data {
            let line = format!("the boot sector says {sectors} sectors, and {data} are needed for the tables");
            return Err(Error::image(line));
        }
        let clusters = (sectors - data) / per_cluster;
        let is_wide = number(22)? == 0;
        let (width, most, bits) = match clusters {
            _ if is_wide => (Width::Fat32, 0x0fff_fff5, 32),
            0..4085 => (Width::Fat12, 0xff5, 12),
            _ => (Width::Fat16, 0xfff5, 16),
        };
        if clusters > most || ((clusters + 2) * bits).div_ceil(8) > table_sectors * sector {
            let line = format!("the boot sector says {clusters} clusters, and a table of {table_sectors} sectors");
            return Err(Error::image(format!("{line} has no room for them")));
        }
        let flags = if is_wide { fields.u16(40)? } else { 0 };
        // Bit 7: only one table is kept up to date.
        let active = if flags & 0x80 != 0 { u64::from(flags & 0xf) } else { 0 };
        if active >= tables {
            return Err(Error::image(format!("the boot sector says that table {active} is used, of {tables}")));
        }
        let more = if is_wide { 64 } else { 36 };
        let has_label = fields.u8(more + 2)? == 0x29;
        Ok(Boot {
            sector,
            cluster: per_cluster * sector,
            table: (reserved + active * table_sectors) * sector,
            root: ((data - root_sectors) * sector, number(17)? * 32),
            root_cluster: if is_wide { fields.u32(44)? } else { 0 },
            data: data * sector,
            // It was checked: it has 28 bits.
            clusters: clusters as u32,
            width,
            size: sectors * sector,
            label: if has_label { fields.bytes(more + 7, 11)?.trim_ascii_end().to_vec() } else { Vec::new() },
            is_dirty: fields.u8(more + 1)? & 1 != 0,
        })
    }

    fn name(&self) -> &'static str {
        match self.width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        }
    }
}

struct System {
    below: Rc<dyn Source>,
    boot: Boot,
    table: Rc<Table>,
    budget: DirectoryBudget,
}

impl System {
    fn new(below: Rc<dyn Source>, boot: Boot) -> System {
        let table = Rc::new(Table {
            cache: BlockCache::new(Rc::clone(&below), 4096, KEPT),
            width: boot.width,
            start: boot.table,
            data: boot.data,
            cluster_size: boot.cluster,
            end: boot.clusters + 2,
        });
        System { below, boot, table, budget: DirectoryBudget::default() }
    }

    /// The first cluster of an entry: FAT12 and FAT16 use the upper half for something else.
    fn first(&self, entry: &Entry) -> u32 {
        if self.boot.width == Width::Fat32 { entry.first } else { entry.first & 0xffff }
    }

    /// The entries of a directory, all of them.
    fn entries(&self, directory: Option<&Entry>) -> Result<Vec<u8>, Error> {
        let first = match directory {
            None if self.boot.width != Width::Fat32 => {
                let (start, length) = self.boot.root;
                self.budget.take(length)?;
                // It has 65535 entries at most.
                return image::read(&*self.below, start, length as usize);
            }
            None => self.boot.root_cluster,
            Some(entry) => self.first(entry),
        };
        let name = directory.map_or("/", |entry| &entry.name);
        let size = self.boot.cluster;
        let most = MOST_DIRECTORY.div_ceil(size) + 1;
        let clusters = Chain::new(Rc::clone(&self.table), name.as_bytes(), first, 0)?.count(most)?;
        if clusters == most && clusters * size > MOST_DIRECTORY.max(size) {
            let line = format!("the directory {} has more than 65536 entries", quoted(name.as_bytes()));
            return Err(Error::image(line));
        }
        let length = clusters * size;
        self.budget.take(length)?;
        let chain = Chain::new(Rc::clone(&self.table), name.as_bytes(), first, length)?;
        image::read(&Mapped::new(Rc::clone(&self.below), chain), 0, length as usize)
    }
}

impl Tree for System {
    /// None: the root directory, which has no entry.
    type Node = Option<Entry>;

    fn root(&self) -> Self::Node {
        None
    }

    fn kind(&self, node: &Self::Node) -> Result<Kind, Error> {
        let is_file = node.as_ref().is_some_and(|entry| !entry.is_directory);
        Ok(if is_file { Kind::File } else { Kind::Directory })
    }

    fn lookup(&self, node: &Self::Node, name: &[u8]) -> Result<Option<Self::Node>, Error> {
        let bytes = self.entries(node.as_ref())?;
        Ok(directory::find(&bytes, &String::from_utf8_lossy(name))?.map(Some))
    }
}

fn open(source: Rc<dyn Source>) -> crate::Opened {
    Boot::read(&*source)?;
    Err(Error::image("this is a FAT file system: fat-file=/PATH of the filter fat opens a file in it"))
}

fn report(source: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let boot = match Boot::read(&**source) {
        Ok(boot) => boot,
        Err(Error::Image(line)) => {
            report.danger(line);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.fact("version", boot.name());
    report.fact("label", quoted(&boot.label));
    report.fact("sector size", boot.sector);
    report.fact("cluster size", boot.cluster);
    report.fact("clusters", boot.clusters);
    report.fact("file system size", boot.size);
    if boot.is_dirty {
        report.danger("it is marked as in use: it was not unmounted");
    }
    if boot.size > source.size() {
        report.danger(format!("it has {} bytes, and the image ends after {}", boot.size, source.size()));
    }
    Ok(report)
}
