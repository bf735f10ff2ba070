//! The log: what a program meant to write to the tables, and perhaps did not.
//!
//! The log is a ring of entries. An entry has a sequence number, descriptors, and a sector of data
//! for each descriptor that is not about zeroes. Of the entries that follow each other in the ring
//! and in their numbers, those from the tail that the last one names up to the last one are the
//! active sequence. They are replayed in memory.

use std::cell::{Cell, Ref};
use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, Source, quoted};

use super::header::{HEADERS_END, VhdxHeader};
use super::overlay::{LOG_SECTOR, Overlay, Replacement};
use crate::checksum::CRC32C;
use crate::guid::Guid;

/// The largest log that is replayed. Each open image reads all of it once. Hyper-V makes 1 MiB.
pub const MOST_LOG: u64 = 64 << 20;

/// The bytes of the log are checked at most so many times. Entries do not overlap; one that was
/// torn may reach over others, which are looked at once more.
const MOST_CHECKS: u64 = 4;

/// Bytes of an entry's header, and of a descriptor.
const ENTRY_HEADER: u64 = 64;
const DESCRIPTOR: u64 = 32;

/// What was replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// How many entries the active sequence has.
    pub entries: usize,
    /// The number of the first one.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
}

/// An entry whose checksum is right. Offsets are within the log.
#[derive(Clone, Debug)]
struct LogEntry {
    at: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    descriptors: u32,
    flushed: u64,
    last: u64,
}

/// What is at a place of the log.
enum LogPlace {
    /// No entry, or one of an earlier log.
    Nothing,
    /// An entry that was not written to its end, and how that shows.
    Torn(String),
    Entry(LogEntry),
}

struct Log {
    sectors: BlockCache,
    start: u64,
    length: u64,
    guid: Guid,
    /// Bytes whose checksum was computed.
    checked: Cell<u64>,
}

/// The image as it is when the log is replayed, or nothing if the log is empty.
///
/// # Errors
/// Those of the image. A line if the log is needed and cannot be replayed.
pub fn replay(image: &Rc<dyn Source>, header: &VhdxHeader) -> Result<Option<(Overlay, Replayed)>, Error> {
    if header.log_guid == Guid::ZERO {
        return Ok(None);
    }
    let length = header.log.end - header.log.start;
    if length > MOST_LOG {
        return Err(Error::image(format!(
            "the log has to be replayed and has {length} bytes: at most {MOST_LOG} are supported"
        )));
    }
    let sectors = BlockCache::new(Rc::clone(image), 64 << 10, 1 << 20);
    let log = Log { sectors, start: header.log.start, length, guid: header.log_guid, checked: Cell::new(0) };
    let active = log.active()?;
    let (Some(first), Some(last)) = (active.first(), active.last()) else {
        return Err(Error::image("the log has to be replayed and has no entries"));
    };
    if last.flushed > image.size() {
        return Err(Error::image(format!(
            "the image had {} bytes when the log was written, and has {}: it was cut",
            last.flushed,
            image.size()
        )));
    }
    let size = image.size().max(last.last);
    if i64::try_from(size).is_err() {
        return Err(Error::image(format!("the log says that the image has {size} bytes")));
    }
    let mut overlay = Overlay::new(Rc::clone(image), size);
    for entry in &active {
        log.descriptors(entry, |start, length, replacement| {
            let end = start.checked_add(length).filter(|end| *end <= size).ok_or_else(|| {
                Error::image(format!(
                    "the log's entry at {} replaces {length} bytes at {start}, and the image has {size}",
                    entry.at
                ))
            })?;
            for (from, until, what) in [(0, HEADERS_END, "the headers"), (header.log.start, header.log.end, "the log")]
            {
                if start < until && from < end {
                    return Err(Error::image(format!(
                        "the log's entry at {} replaces {length} bytes at {start}: {what} must not be replaced",
                        entry.at
                    )));
                }
            }
            overlay.replace(start, end, replacement)
        })?;
    }
    Ok(Some((overlay, Replayed { entries: active.len(), first: first.sequence, last: last.sequence })))
}

impl Log {
    /// The sector at `at`, which may be behind the end of the ring.
    fn sector(&self, at: u64) -> Result<Ref<'_, [u8]>, Error> {
        let bytes = self.sectors.from(self.start + at % self.length)?;
        Ok(Ref::map(bytes, |bytes| &bytes[..bytes.len().min(LOG_SECTOR as usize)]))
    }

    /// The entries of the active sequence, in order.
    fn active(&self) -> Result<Vec<LogEntry>, Error> {
        let (mut entries, mut torn, mut at) = (Vec::new(), None, 0);
        while at < self.length {
            at += match self.look(at)? {
                LogPlace::Nothing => LOG_SECTOR,
                LogPlace::Torn(why) => {
                    torn.get_or_insert(why);
                    LOG_SECTOR
                }
                LogPlace::Entry(entry) => {
                    let length = entry.length;
                    entries.push(entry);
                    length
                }
            };
        }
        let active = self.sequence(&entries)?;
        if active.is_empty() {
            let why = torn.map_or_else(String::new, |why| format!("; {why}"));
            return Err(Error::image(format!(
                "the log has to be replayed, and none of its {} entries ends a sequence{why}",
                entries.len()
            )));
        }
        Ok(active)
    }

    /// Of all sequences the one whose last entry has the largest number. The tail of its last entry
    /// is in it.
    fn sequence(&self, entries: &[LogEntry]) -> Result<Vec<LogEntry>, Error> {
        let find = |at: u64| entries.binary_search_by_key(&at, |entry| entry.at).ok();
        // The entry that goes before each one.
        let mut before = vec![None; entries.len()];
        let mut is_last = vec![true; entries.len()];
        for (n, entry) in entries.iter().enumerate() {
            if let Some(next) = find((entry.at + entry.length) % self.length)
                && entry.sequence.checked_add(1) == Some(entries[next].sequence)
            {
                (before[next], is_last[n]) = (Some(n), false);
            }
        }
        let mut active: Vec<LogEntry> = Vec::new();
        for last in (0..entries.len()).filter(|n| is_last[*n]) {
            let (mut sequence, mut at) = (vec![entries[last].clone()], last);
            while entries[at].at != entries[last].tail {
                let Some(n) = before[at] else {
                    sequence.clear();
                    break;
                };
                at = n;
                sequence.push(entries[at].clone());
            }
            sequence.reverse();
            let number = |sequence: &[LogEntry]| sequence.last().map(|entry| entry.sequence);
            if number(&sequence).is_some() && number(&sequence) == number(&active) {
                return Err(Error::image(format!(
                    "the log has two sequences that end with the number {}",
                    entries[last].sequence
                )));
            }
            if number(&sequence) > number(&active) {
                active = sequence;
            }
        }
        Ok(active)
    }

    /// What is at `at`.
    ///
    /// # Errors
    /// Those of the image. A line if an entry was written to its end and says what cannot be.
    fn look(&self, at: u64) -> Result<LogPlace, Error> {
        let (entry, stored) = {
            let sector = self.sector(at)?;
            let fields = Fields::little(&sector, "the log's entry");
            if fields.bytes(0, 4)? != b"loge" || Guid::read(fields, 32)? != self.guid {
                return Ok(LogPlace::Nothing);
            }
            let entry = LogEntry {
                at,
                length: fields.u32(8)?.into(),
                tail: fields.u32(12)?.into(),
                sequence: fields.u64(16)?,
                descriptors: fields.u32(24)?,
                flushed: fields.u64(48)?,
                last: fields.u64(56)?,
            };
            (entry, fields.u32(4)?)
        };
        let torn = |why: String| Ok(LogPlace::Torn(format!("the one at {at} {why}")));
        let LogEntry { length, sequence, descriptors, .. } = entry;
        if length == 0 || !length.is_multiple_of(LOG_SECTOR) || length > self.length {
            return torn(format!("says a length of {length} bytes"));
        }
        if sequence == 0 {
            return torn("has the sequence number 0".into());
        }
        if descriptor_bytes(descriptors) > length {
            return torn(format!("says {descriptors} descriptors in {length} bytes"));
        }
        let right = self.checksum(&entry)?;
        if stored != right {
            return torn(format!("has the checksum {stored:#010x}, and its bytes give {right:#010x}"));
        }
        self.descriptors(&entry, |_, _, _| Ok(()))?;
        Ok(LogPlace::Entry(entry))
    }

    fn checksum(&self, entry: &LogEntry) -> Result<u32, Error> {
        self.checked.set(self.checked.get() + entry.length);
        if self.checked.get() > self.length * MOST_CHECKS {
            return Err(Error::image("the log has to be replayed, and its entries lie over each other"));
        }
        let mut digest = CRC32C.digest();
        for n in (0..entry.length).step_by(LOG_SECTOR as usize) {
            let sector = self.sector(entry.at + n)?;
            if n == 0 {
                digest.update(&sector[..4]);
                digest.update(&[0; 4]);
                digest.update(&sector[8..]);
            } else {
                digest.update(&sector);
            }
        }
        Ok(digest.finalize())
    }

    /// Calls `each` with the start, the length and the replacement of each descriptor.
    ///
    /// # Errors
    /// Those of the image and of `each`. A line if a descriptor is wrong.
    fn descriptors(
        &self,
        entry: &LogEntry,
        mut each: impl FnMut(u64, u64, Replacement) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut data = descriptor_bytes(entry.descriptors);
        for n in 0..u64::from(entry.descriptors) {
            let fail = |line: String| Err(Error::image(format!("the log's entry at {}: {line}", entry.at)));
            let at = (entry.at + ENTRY_HEADER + n * DESCRIPTOR) % self.length;
            let bytes: [u8; DESCRIPTOR as usize] = self.sectors.array(self.start + at)?;
            let fields = Fields::little(&bytes, "the descriptor");
            let (start, sequence) = (fields.u64(16)?, fields.u64(24)?);
            let is_data = match fields.bytes(0, 4)? {
                b"desc" => true,
                b"zero" => false,
                other => return fail(format!("descriptor {n} begins with {}", quoted(other))),
            };
            if sequence != entry.sequence {
                return fail(format!("descriptor {n} has the number {sequence}, and the entry {}", entry.sequence));
            }
            let length = if is_data { LOG_SECTOR } else { fields.u64(8)? };
            if !start.is_multiple_of(LOG_SECTOR) || !length.is_multiple_of(LOG_SECTOR) {
                return fail(format!(
                    "descriptor {n} is about {length} bytes at {start}: both must be multiples of {LOG_SECTOR}"
                ));
            }
            let mut replacement = Replacement::Zero;
            if is_data {
                if data >= entry.length {
                    return fail(format!("descriptor {n} has no sector of data in the {} bytes", entry.length));
                }
                let sector = self.sector(entry.at + data)?;
                let fields = Fields::little(&sector, "the sector");
                let number = u64::from(fields.u32(4)?) << 32 | u64::from(fields.u32(LOG_SECTOR as usize - 4)?);
                if fields.bytes(0, 4)? != b"data" || number != entry.sequence {
                    return fail(format!("the data of descriptor {n} is not a sector of this entry"));
                }
                let (mut first, mut last) = ([0; 8], [0; 4]);
                first.copy_from_slice(&bytes[8..16]);
                last.copy_from_slice(&bytes[4..8]);
                let at = self.start + (entry.at + data) % self.length;
                replacement = Replacement::Sector { at, first, last };
                data += LOG_SECTOR;
            }
            if length > 0 {
                each(start, length, replacement)?;
            }
        }
        if data != entry.length {
            return Err(Error::image(format!(
                "the log's entry at {}: it has {} bytes, and its descriptors need {data}",
                entry.at, entry.length
            )));
        }
        Ok(())
    }
}

/// The bytes of the sectors that an entry's header and descriptors need.
fn descriptor_bytes(descriptors: u32) -> u64 {
    (ENTRY_HEADER + u64::from(descriptors) * DESCRIPTOR).next_multiple_of(LOG_SECTOR)
}
