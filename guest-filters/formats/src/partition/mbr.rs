//! The table in the first sector, and the chain of logical partitions.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use super::table::{Partition, Scheme, Table, Type, is_extended};

/// At most this many logical partitions are read. Linux names 60 at most.
const MOST_LOGICAL: u32 = 128;

/// The type of the entry that protects a GPT.
pub const PROTECTIVE: u8 = 0xee;

/// One of the four entries of a table, in sectors.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    start: u64,
    size: u64,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.kind == 0 || self.size == 0
    }
}

fn entries(sector: &[u8]) -> Result<[Entry; 4], Error> {
    let fields = Fields::little(sector, "the MBR");
    let entry = |n: usize| -> Result<Entry, Error> {
        let at = 446 + n * 16;
        Ok(Entry {
            status: fields.u8(at)?,
            kind: fields.u8(at + 4)?,
            start: fields.u32(at + 8)?.into(),
            size: fields.u32(at + 12)?.into(),
        })
    };
    Ok([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// Whether the table protects a GPT.
pub fn is_protective(first: &[u8]) -> bool {
    first[510..512] == [0x55, 0xaa] && entries(first).is_ok_and(|of| of.iter().any(|entry| entry.kind == PROTECTIVE))
}

/// Whether a first sector is more likely a table than the start of a file system, which has the
/// same signature.
pub fn is_plausible(first: &[u8], size: u64) -> bool {
    let is_file_system = [(3, &b"NTFS    "[..]), (3, b"EXFAT   "), (54, b"FAT"), (82, b"FAT32")]
        .iter()
        .any(|(at, magic)| first[*at..].starts_with(magic));
    let Ok(entries) = entries(first) else { return false };
    first[510..512] == [0x55, 0xaa]
        && !is_file_system
        && entries.iter().all(|entry| matches!(entry.status, 0 | 0x80))
        && entries.iter().any(|entry| !entry.is_empty())
        && entries.iter().filter(|entry| !entry.is_empty()).all(|entry| entry.start > 0 && entry.start < size / 512)
}

/// Reads the table of a disk whose first sector has the signature.
pub fn read(disk: &dyn Source, sector: u32, first: &[u8]) -> Result<Table, Error> {
    let mut table = Table { scheme: Scheme::Mbr, sector, partitions: Vec::new(), dangers: Vec::new() };
    let bytes = u64::from(sector);
    let partition = |number, entry: Entry, from: u64| Partition {
        number,
        start: (from + entry.start) * bytes,
        size: entry.size * bytes,
        kind: Type::Mbr(entry.kind),
        label: String::new(),
        guid: None,
    };
    let primary = entries(first)?;
    for (number, entry) in (1..).zip(primary) {
        if !entry.is_empty() {
            table.partitions.push(partition(number, entry, 0));
        }
    }
    let mut extended = primary.iter().filter(|entry| !entry.is_empty() && is_extended(entry.kind));
    let Some(whole) = extended.next() else { return Ok(table) };
    if extended.next().is_some() {
        table.dangers.push("there is more than one extended partition: only the first one's are read".into());
    }
    // Tables of logical partitions, in sectors of the disk. Each may be visited once.
    let (mut at, mut visited) = (whole.start, Vec::new());
    let mut number = 5;
    loop {
        if visited.contains(&at) {
            return Err(Error::image(format!(
                "the logical partitions are a loop: the table in sector {at} comes again"
            )));
        }
        if visited.len() == MOST_LOGICAL as usize {
            return Err(Error::image(format!("there are more than {MOST_LOGICAL} tables of logical partitions")));
        }
        visited.push(at);
        if at.saturating_add(1) * bytes > disk.size() {
            return Err(Error::image(format!(
                "the table of logical partition {number} is in sector {at}, beyond the end of the disk"
            )));
        }
        let table_here = image::read(disk, at * bytes, 512)?;
        if table_here[510..] != [0x55, 0xaa] {
            return Err(Error::image(format!(
                "the table of logical partition {number}, in sector {at}, has no signature"
            )));
        }
        let [logical, next, ..] = entries(&table_here)?;
        if !logical.is_empty() && !is_extended(logical.kind) {
            table.partitions.push(partition(number, logical, at));
            if logical.start == 0 {
                table.dangers.push(format!("logical partition {number} begins at its own table"));
            }
            if at + logical.start + logical.size > whole.start + whole.size {
                table.dangers.push(format!("logical partition {number} is not within the extended partition"));
            }
            number += 1;
        }
        if next.is_empty() || !is_extended(next.kind) {
            return Ok(table);
        }
        at = whole.start + next.start;
    }
}
