//! ISO 9660: a file on a CD image, by its Rock Ridge, Joliet or plain name.

mod record;
mod rock;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

use crate::mapped::{Mapped, Place, Run, Runs};
use crate::paths::{self, DirectoryBudget, Kind, Tree};
use crate::{FormatInfo, Report};
use record::{Names, Record};
use rock::Rock;

/// The format.
pub const INFO: FormatInfo = FormatInfo {
    name: "iso9660",
    probe,
    report,
    open: |_| {
        Err(Error::image(
            "this is an ISO 9660 file system: iso9660-file=/PATH of the filter iso9660 opens a file in it",
        ))
    },
};

/// A file that was opened.
pub type File = Mapped<Pieces>;

const SECTOR: u64 = 2048;

/// The volume descriptors are in the sectors from this on.
const FIRST: u64 = 16;

/// Volume descriptors that are looked at.
const MOST_DESCRIPTORS: u64 = 64;

/// Pieces of one file: 16 TiB.
const MOST_PIECES: usize = 4096;

/// Opens the file with this path.
///
/// # Errors
/// Those of the source. A line if there is no such file, or if the file system is wrong.
pub fn open_file(below: Rc<dyn Source>, path: &str) -> Result<File, Error> {
    let system = System::new(below)?;
    let node = paths::find(&system, path)?;
    let shown = quoted(path.as_bytes());
    let unsupported = match () {
        () if node.rock.is_compressed => Some("is compressed with zisofs"),
        () if node.rock.is_sparse => Some("is a sparse file of Rock Ridge"),
        () if node.is_interleaved => Some("is interleaved with others"),
        () => None,
    };
    if let Some(what) = unsupported {
        return Err(Error::image(format!("{shown} {what}, which is not supported")));
    }
    let text = format!("{shown} in an ISO 9660 file system");
    Ok(Mapped::new(system.below, Pieces::new(&node.pieces, system.block)).described(text))
}

/// Where the pieces of a file are.
pub struct Pieces {
    /// The offset in the file where each ends, and where it begins below.
    ends: Vec<(u64, u64)>,
}

impl Pieces {
    fn new(pieces: &[(u32, u32)], block: u64) -> Pieces {
        let mut end = 0;
        let ends = pieces.iter().filter(|(_, size)| *size > 0).map(|(at, size)| {
            end += u64::from(*size);
            (end, u64::from(*at) * block)
        });
        Pieces { ends: ends.collect() }
    }
}

impl Runs for Pieces {
    fn size(&self) -> u64 {
        self.ends.last().map_or(0, |(end, _)| *end)
    }

    fn run(&self, offset: u64) -> Result<Run, Error> {
        let nth = self.ends.partition_point(|(end, _)| *end <= offset);
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before].0);
        let Some((end, at)) = self.ends.get(nth) else {
            return Err(Error::image(format!("offset {offset} of a file of {} bytes", self.size())));
        };
        Ok(Run { length: end - offset, place: Place::At(at + (offset - start)) })
    }
}

/// A file or directory.
#[derive(Clone)]
struct Node {
    /// Blocks and bytes.
    pieces: Vec<(u32, u32)>,
    is_directory: bool,
    is_interleaved: bool,
    rock: Rock,
}

/// A volume descriptor.
struct Volume {
    block: u64,
    blocks: u32,
    label: Vec<u8>,
    root: (u32, u32),
}

impl Volume {
    fn parse(sector: &[u8]) -> Result<Volume, Error> {
        let fields = Fields::little(sector, "the volume descriptor");
        let block = u64::from(fields.u16(128)?);
        if ![512, 1024, 2048].contains(&block) {
            return Err(Error::image(format!(
                "the volume descriptor says blocks of {block} bytes, and not 512 to 2048"
            )));
        }
        let root = (fields.u32(158)?.saturating_add(fields.u8(157)?.into()), fields.u32(166)?);
        let label = fields.bytes(40, 32)?.trim_ascii_end().to_vec();
        Ok(Volume { block, blocks: fields.u32(80)?, label, root })
    }
}

/// The volume descriptors.
struct Descriptors {
    primary: Volume,
    joliet: Option<Volume>,
    has_boot_record: bool,
}

impl Descriptors {
    fn read(source: &dyn Source) -> Result<Descriptors, Error> {
        let (mut primary, mut joliet, mut has_boot_record) = (None, None, false);
        for sector in FIRST..FIRST + MOST_DESCRIPTORS {
            if source.size() < (sector + 1) * SECTOR {
                break;
            }
            let bytes = image::read(source, sector * SECTOR, SECTOR as usize)?;
            if &bytes[1..6] != b"CD001" {
                break;
            }
            match bytes[0] {
                0 => has_boot_record = true,
                1 if primary.is_none() => primary = Some(Volume::parse(&bytes)?),
                2 if matches!(&bytes[88..91], b"%/@" | b"%/C" | b"%/E") => joliet = Some(Volume::parse(&bytes)?),
                255 => break,
                _ => {}
            }
        }
        let Some(primary) = primary else {
            return Err(Error::image("it is not an ISO 9660 file system: it has no primary volume descriptor"));
        };
        Ok(Descriptors { primary, joliet, has_boot_record })
    }
}

struct System {
    below: Rc<dyn Source>,
    block: u64,
    root: (u32, u32),
    names: Names,
    budget: DirectoryBudget,
}

impl System {
    fn new(below: Rc<dyn Source>) -> Result<System, Error> {
        let Descriptors { primary, joliet, .. } = Descriptors::read(&*below)?;
        let mut system = System {
            block: primary.block,
            root: primary.root,
            names: Names::Plain,
            budget: DirectoryBudget::default(),
            below,
        };
        if let Some(skip) = system.rock_ridge()? {
            system.names = Names::RockRidge { skip };
        } else if let Some(joliet) = joliet {
            (system.block, system.root, system.names) = (joliet.block, joliet.root, Names::Joliet);
        }
        Ok(system)
    }

    /// Whether the volume has Rock Ridge: the first record of the root says so. Returns how many
    /// bytes of each field are something else.
    fn rock_ridge(&self) -> Result<Option<usize>, Error> {
        let start = u64::from(self.root.0) * self.block;
        if start + SECTOR > self.below.size() {
            return Ok(None);
        }
        let sector = image::read(&*self.below, start, SECTOR as usize)?;
        let length = usize::from(sector[0]);
        // The name of the record has one byte. The field is the entry SP, with a check.
        let Some([b'S', b'P', 7, 1, 0xbe, 0xef, skip]) = sector[..length].get(34..41) else { return Ok(None) };
        let rock = Rock::parse(&sector[34..length], &self.susp())?;
        Ok(rock.mode.is_some().then_some((*skip).into()))
    }

    fn susp(&self) -> rock::SystemUse<'_> {
        rock::SystemUse { source: &*self.below, block: self.block }
    }

    /// Looks at the records of a directory until one of a file is wanted.
    fn find(&self, place: (u32, u32), name: &[u8]) -> Result<Option<Node>, Error> {
        let (start, size) = (u64::from(place.0) * self.block, u64::from(place.1));
        if start.checked_add(size).is_none_or(|end| end > self.below.size()) {
            let line =
                format!("a directory has {size} bytes at {start}, and the image ends after {}", self.below.size());
            return Err(Error::image(line));
        }
        let mut found: Option<Node> = None;
        let mut done = 0;
        while done < size {
            let length = SECTOR.min(size - done);
            self.budget.take(length)?;
            let sector = image::read(&*self.below, start + done, length as usize)?;
            let mut at = 0;
            while let Some((record, length)) = Record::parse(&sector[at..], self.names, &self.susp())? {
                at += length;
                let is_wanted = record.has_name(name, self.names) && !record.is_associated && !record.rock.is_moved;
                let goes_on = record.goes_on;
                if !is_wanted {
                    continue;
                }
                let node = found.get_or_insert_with(|| Node {
                    pieces: Vec::new(),
                    is_directory: record.is_directory || record.rock.child.is_some(),
                    is_interleaved: false,
                    rock: Rock::default(),
                });
                node.is_interleaved |= record.is_interleaved;
                node.rock = record.rock;
                node.pieces.push((record.block, record.size));
                if node.pieces.len() > MOST_PIECES {
                    return Err(Error::image(format!("{} has more than {MOST_PIECES} pieces", quoted(name))));
                }
                if !goes_on {
                    return Ok(found);
                }
            }
            done += length;
        }
        match found {
            Some(_) => Err(Error::image(format!("the last piece of {} is missing in its directory", quoted(name)))),
            None => Ok(None),
        }
    }

    /// The size of a directory at a block: its first record is its own.
    fn moved(&self, block: u32) -> Result<(u32, u32), Error> {
        let start = u64::from(block) * self.block;
        let record = image::read(&*self.below, start, 34)?;
        Ok((block, Fields::little(&record, "the record").u32(10)?))
    }
}

impl Tree for System {
    type Node = Node;

    fn root(&self) -> Node {
        Node { pieces: vec![self.root], is_directory: true, is_interleaved: false, rock: Rock::default() }
    }

    fn kind(&self, node: &Node) -> Result<Kind, Error> {
        if node.is_directory {
            return Ok(Kind::Directory);
        }
        if let Some(link) = &node.rock.link {
            return Ok(Kind::Link(link.clone()));
        }
        Ok(match node.rock.mode.unwrap_or(0o100_000) >> 12 {
            1 => Kind::Other("a named pipe"),
            2 => Kind::Other("a character device"),
            6 => Kind::Other("a block device"),
            12 => Kind::Other("a socket"),
            _ => Kind::File,
        })
    }

    fn lookup(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Error> {
        match (directory.rock.child, directory.pieces.first()) {
            (Some(block), _) => self.find(self.moved(block)?, name),
            (None, Some(place)) => self.find(*place, name),
            (None, None) => Ok(None),
        }
    }
}

fn probe(source: &dyn Source) -> Result<bool, Error> {
    let at = FIRST * SECTOR;
    Ok(source.size() >= at + SECTOR && &image::read(source, at + 1, 5)?[..] == b"CD001")
}

fn report(source: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let descriptors = Descriptors::read(&**source);
    let (descriptors, names) = match descriptors.and_then(|found| Ok((found, System::new(Rc::clone(source))?.names))) {
        Ok(found) => found,
        Err(Error::Image(line)) => {
            report.danger(line);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let volume = &descriptors.primary;
    let size = u64::from(volume.blocks) * volume.block;
    report.fact("label", quoted(&volume.label));
    report.fact("block size", volume.block);
    report.fact("file system size", size);
    let names = match names {
        Names::Plain => "plain",
        Names::Joliet => "Joliet",
        Names::RockRidge { .. } => "Rock Ridge",
    };
    report.fact("names", names);
    if names == "Rock Ridge" && descriptors.joliet.is_some() {
        report.fact("other names", "Joliet");
    }
    if descriptors.has_boot_record {
        report.fact("boot record", "yes");
    }
    if size > source.size() {
        report.danger(format!("it has {size} bytes, and the image ends after {}", source.size()));
    }
    Ok(report)
}
