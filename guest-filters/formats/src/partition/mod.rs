//! Partition tables: MBR with logical partitions, GPT, and the partition map of Apple.

mod apm;
mod choice;
mod gpt;
mod mbr;
mod table;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Part, Source, quoted};

use crate::{FormatInfo, Opened, Report};

pub use choice::Choice;
pub use gpt::Trust;
pub use table::{Partition, Scheme, Table, Type};

/// Error lines name at most this many partitions.
const MOST_NAMED: usize = 16;

/// For those who do not know the format. A disk with partitions is opened as the whole disk.
pub const INFO: FormatInfo = FormatInfo { name: "partition", probe, report, open };

/// How a table is read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The bytes of a sector: 512 or 4096. None finds it out from where a GPT is.
    pub sector: Option<u32>,
    pub trust: Trust,
}

impl Default for Options {
    fn default() -> Options {
        Options { sector: None, trust: Trust::Agree }
    }
}

impl Table {
    /// Reads the table of a disk.
    ///
    /// # Errors
    /// A line if there is none, or it is wrong.
    pub fn read(disk: &dyn Source, options: Options) -> Result<Table, Error> {
        let mut table = Table::read_scheme(disk, options)?;
        let mut sorted: Vec<&Partition> = table.partitions.iter().filter(|part| !part.is_extended()).collect();
        sorted.sort_by_key(|part| part.start);
        let overlap = sorted.windows(2).find(|pair| pair[1].start < pair[0].end());
        if let Some(pair) = overlap {
            let line = format!("partitions {} and {} overlap", pair[0].number, pair[1].number);
            table.dangers.push(line);
        }
        for part in table.partitions.iter().filter(|part| part.end() > disk.size()).take(3) {
            table.dangers.push(format!(
                "partition {} ends at {}, beyond the end of the disk, {}",
                part.number,
                part.end(),
                disk.size()
            ));
        }
        Ok(table)
    }

    fn read_scheme(disk: &dyn Source, options: Options) -> Result<Table, Error> {
        if disk.size() < 512 {
            return Err(Error::image(format!("a disk of {} bytes has no partition table", disk.size())));
        }
        let first = image::read(disk, 0, 512)?;
        if first.starts_with(b"ER") && apm::is_map(disk)? {
            return apm::read(disk, &first);
        }
        let sectors = options.sector.map_or(vec![512, 4096], |sector| vec![sector]);
        for sector in &sectors {
            if let Some(table) = gpt::read(disk, *sector, &first, options.trust)? {
                return Ok(table);
            }
        }
        if first[510..] != [0x55, 0xaa] {
            let sectors = options.sector.map_or(String::new(), |sector| format!(" with sectors of {sector} bytes"));
            return Err(Error::image(format!("the disk has no partition table{sectors}: no MBR, GPT or Apple map")));
        }
        mbr::read(disk, sectors[0], &first)
    }

    /// The partition that was chosen.
    ///
    /// # Errors
    /// A line if there is none or more than one, or it cannot be served.
    pub fn choose(&self, choice: &Choice) -> Result<&Partition, Error> {
        let mut found = self.partitions.iter().filter(|part| choice.is(part));
        let Some(part) = found.next() else {
            return Err(Error::image(format!("there is no partition with {choice}; there are {}", self.list())));
        };
        if let Some(other) = found.next() {
            let (first, second) = (part.number, other.number);
            return Err(Error::image(format!(
                "partitions {first} and {second} both have {choice}: choose with partition={first} or \
                 partition={second}"
            )));
        }
        if part.is_extended() {
            return Err(Error::image(format!(
                "partition {} is an extended partition, which holds the logical ones from 5 on",
                part.number
            )));
        }
        Ok(part)
    }

    /// The partitions, for a line.
    fn list(&self) -> String {
        let one = |part: &Partition| match part.label.as_str() {
            "" => part.number.to_string(),
            label => format!("{} ({})", part.number, quoted(label.as_bytes())),
        };
        let mut list: Vec<String> = self.partitions.iter().take(MOST_NAMED).map(one).collect();
        if self.partitions.len() > MOST_NAMED {
            list.push("...".into());
        }
        if list.is_empty() { "none".into() } else { list.join(", ") }
    }
}

/// Opens the chosen partition of a disk. Returns where it begins, too.
///
/// # Errors
/// Those of reading the table and of the choice. A line if the partition is not within the disk.
pub fn open_chosen(disk: Rc<dyn Source>, options: Options, choice: &Choice) -> Result<Part, Error> {
    let table = Table::read(&*disk, options)?;
    let part = table.choose(choice)?;
    let (start, size) = (part.start, part.size);
    if part.end() > disk.size() {
        return Err(Error::image(format!(
            "partition {} has {size} bytes from {start} on, and the disk ends after {} bytes",
            part.number,
            disk.size()
        )));
    }
    Part::new(disk, start, size)
}

fn probe(disk: &dyn Source) -> Result<bool, Error> {
    if disk.size() < 1024 {
        return Ok(false);
    }
    let first = image::read(disk, 0, 512)?;
    if first.starts_with(b"ER") && apm::is_map(disk)? {
        return Ok(true);
    }
    Ok(mbr::is_plausible(&first, disk.size()) || gpt::has_signature(disk, 512)? || gpt::has_signature(disk, 4096)?)
}

fn report(disk: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report { size: Some(disk.size()), ..Report::default() };
    let mut table = Table::read(&**disk, Options::default());
    if let Err(Error::Image(line)) = &table {
        report.danger(line.clone());
        table = Table::read(&**disk, Options { trust: Trust::Primary, ..Options::default() });
    }
    match table {
        Ok(table) => {
            let scheme = match table.scheme {
                Scheme::Mbr => "MBR",
                Scheme::Gpt => "GPT",
                Scheme::Apm => "Apple partition map",
            };
            report.fact("table", scheme);
            report.fact("sectors", format!("{} bytes", table.sector));
            report.fact("partitions", table.list());
            report.dangers.extend(table.dangers);
        }
        Err(Error::Image(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn open(disk: Rc<dyn Source>) -> Opened {
    let size = disk.size();
    Ok(Rc::new(Part::new(disk, 0, size)?))
}
