//! The GUID partition table, and its backup.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use super::mbr;
use super::table::{Partition, Scheme, Table, Type};
use crate::checksum::crc32;
use crate::guid::Guid;

const SIGNATURE: &[u8] = b"EFI PART";

/// At most this many bytes of entries are read. 128 entries of 128 bytes are usual.
const MOST_BYTES: u64 = 1 << 20;

/// Which of the two tables counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// They have to agree. If one is damaged the other counts.
    Agree,
    Primary,
    Backup,
}

/// A table whose checksums are right.
struct Found {
    partitions: Vec<Partition>,
    backup_at: u64,
    /// What has to be the same in both tables.
    disk: Guid,
    usable: (u64, u64),
    entries: Vec<u8>,
}

/// Whether the second sector begins with the signature.
pub fn has_signature(disk: &dyn Source, sector: u32) -> Result<bool, Error> {
    let sector = u64::from(sector);
    Ok(disk.size() >= 2 * sector && image::read(disk, sector, 8)? == SIGNATURE)
}

/// Reads the table. None if there is nothing of a GPT.
pub fn read(disk: &dyn Source, sector: u32, first: &[u8], trust: Trust) -> Result<Option<Table>, Error> {
    let bytes = u64::from(sector);
    let last = (disk.size() / bytes).saturating_sub(1);
    let is_protected = mbr::is_protective(first);
    let has_backup = last > 1 && image::read(disk, last * bytes, 8)? == SIGNATURE;
    if !(has_signature(disk, sector)? || is_protected && has_backup) {
        return Ok(None);
    }
    let primary = table_at(disk, bytes, 1);
    let backup = table_at(disk, bytes, primary.as_ref().map_or(last, |table| table.backup_at));
    let mut dangers = Vec::new();
    if !is_protected {
        dangers.push("the MBR does not protect the GPT: programs that do not know a GPT see another disk".to_string());
    }
    let line = |error: &Error| error.to_string();
    // A failure of the layer below must not look like a damaged table.
    for table in [&primary, &backup] {
        if let Err(error @ Error::Failed(_)) = table {
            return Err(error.clone());
        }
    }
    let table = match (trust, primary, backup) {
        (Trust::Primary, table, _) | (Trust::Backup, _, table) => table?,
        (Trust::Agree, Ok(primary), Ok(backup)) => {
            if let Some(what) = differs(&primary, &backup) {
                return Err(Error::image(format!(
                    "the GPT and its backup have different {what}: choose with partition-gpt=primary or \
                     partition-gpt=backup"
                )));
            }
            primary
        }
        (Trust::Agree, Ok(primary), Err(error)) => {
            dangers.push(format!("the backup of the GPT cannot be used: {}", line(&error)));
            primary
        }
        (Trust::Agree, Err(error), Ok(backup)) => {
            dangers.push(format!("the GPT cannot be used, its backup is: {}", line(&error)));
            backup
        }
        (Trust::Agree, Err(error), Err(other)) => {
            return Err(Error::image(format!("{}; and {}", line(&error), line(&other))));
        }
    };
    Ok(Some(Table { scheme: Scheme::Gpt, sector, partitions: table.partitions, dangers }))
}

fn differs(a: &Found, b: &Found) -> Option<&'static str> {
    if a.disk != b.disk {
        Some("GUIDs of the disk")
    } else if a.entries != b.entries {
        Some("partitions")
    } else if a.usable != b.usable {
        Some("usable sectors")
    } else {
        None
    }
}

/// The table whose header is in sector `at`.
fn table_at(disk: &dyn Source, bytes: u64, at: u64) -> Result<Found, Error> {
    let what = format!("the GPT header in sector {at}");
    let wrong = |why: String| Error::image(format!("{what} {why}"));
    let place = at.checked_mul(bytes).filter(|place| place.checked_add(bytes).is_some_and(|end| end <= disk.size()));
    let place = place.ok_or_else(|| wrong("is beyond the end of the disk".into()))?;
    let sector = image::read(disk, place, bytes as usize)?;
    let fields = Fields::little(&sector, &what);
    if fields.bytes(0, 8)? != SIGNATURE {
        return Err(wrong("has no signature".into()));
    }
    let length = fields.u32(12)? as usize;
    if length < 92 || length > sector.len() {
        return Err(wrong(format!("says that it has {length} bytes; 92 to {} are possible", sector.len())));
    }
    let mut header = fields.bytes(0, length)?.to_vec();
    header[16..20].fill(0);
    if crc32(&header) != fields.u32(16)? {
        return Err(wrong("has a wrong checksum".into()));
    }
    if fields.u64(24)? != at {
        return Err(wrong(format!("says that it is in sector {}", fields.u64(24)?)));
    }
    let (count, entry) = (u64::from(fields.u32(80)?), u64::from(fields.u32(84)?));
    if !(128..=4096).contains(&entry) || !entry.is_power_of_two() || count * entry > MOST_BYTES {
        return Err(wrong(format!("has {count} entries of {entry} bytes; at most {MOST_BYTES} bytes are read")));
    }
    let entries_at = fields.u64(72)?;
    let entries =
        entries_at.checked_mul(bytes).filter(|at| at.checked_add(count * entry).is_some_and(|end| end <= disk.size()));
    let entries = entries.ok_or_else(|| wrong(format!("has entries in sector {entries_at}, beyond the end")))?;
    let entries = image::read(disk, entries, (count * entry) as usize)?;
    if crc32(&entries) != fields.u32(88)? {
        return Err(wrong("has entries with a wrong checksum".into()));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(entry as usize)) {
        if let Some(partition) = partition(number, entry, bytes).map_err(wrong)? {
            partitions.push(partition);
        }
    }
    Ok(Found {
        partitions,
        backup_at: fields.u64(32)?,
        disk: Guid(fixed(fields.bytes(56, 16)?)),
        usable: (fields.u64(40)?, fields.u64(48)?),
        entries,
    })
}

fn fixed(bytes: &[u8]) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed.copy_from_slice(&bytes[..16]);
    fixed
}

fn partition(number: u32, entry: &[u8], bytes: u64) -> Result<Option<Partition>, String> {
    if entry[..16] == [0; 16] {
        return Ok(None);
    }
    let sector = |at: usize| entry[at..at + 8].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    let (first, last) = (sector(32), sector(40));
    let size = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1)).and_then(|n| n.checked_mul(bytes));
    let start = first.checked_mul(bytes);
    let end = size.zip(start).and_then(|(size, start)| start.checked_add(size));
    let (Some(size), Some(start), Some(_)) = (size, start, end) else {
        return Err(format!("has partition {number} from sector {first} to {last}"));
    };
    let units = entry[56..128].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let label =
        char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
    Ok(Some(Partition {
        number,
        start,
        size,
        kind: Type::Gpt(Guid(fixed(&entry[..16]))),
        label: label.collect(),
        guid: Some(Guid(fixed(&entry[16..32]))),
    }))
}
