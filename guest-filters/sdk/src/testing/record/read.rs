//! Reads a record, entry by entry.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::testing::digest::crc32c;
use crate::testing::ranges::Ranges;

use super::decode::{Entry, EntryFields, MAX_REQUEST};
use super::entry::{EntryCall, Event, Gate, Record, RecordedCall, Session};

const MAGIC: &[u8; 8] = b"rbdkitRC";

/// The largest record in bytes. It is in memory as a whole.
const MAX_FILE: u64 = 256 << 20;

/// The longest entry in bytes: the data of the longest request, and a page.
const MAX_BODY: usize = MAX_REQUEST as usize + 4096;

/// The most calls. Each takes some 200 bytes of memory.
const MAX_CALLS: usize = 1 << 20;

impl Record {
    /// Reads a record of at most 256 MiB. The path is relative to the package, where `cargo test`
    /// runs.
    ///
    /// # Errors
    /// One line: the file cannot be read, is no record, or is damaged.
    pub fn read(path: impl AsRef<Path>) -> Result<Record, String> {
        let path = path.as_ref();
        let failed = |why: String| format!("{}: {why}", path.display());
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.is_file() {
            return Err(failed("is not a file".into()));
        }
        let mut file = Vec::new();
        let read = File::open(path).and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut file));
        read.map_err(|error| failed(error.to_string()))?;
        Record::from_bytes(file).map_err(failed)
    }

    /// Reads a record from memory.
    ///
    /// # Errors
    /// One line: it is no record, or is damaged.
    pub fn from_bytes(file: Vec<u8>) -> Result<Record, String> {
        if file.len() as u64 > MAX_FILE {
            return Err(format!("has more than {} MiB: use rbdkit-filter replay", MAX_FILE >> 20));
        }
        let Some((header, _)) = file.split_first_chunk::<12>().filter(|(header, _)| header.starts_with(MAGIC)) else {
            return Err("is not a record of rbdkit --record".into());
        };
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if !(1..=2).contains(&version) {
            return Err(format!("is a record of version {version}, and this SDK reads versions 1 and 2"));
        }
        let nothing = Session { layer: String::new(), is_filter: false, has_payloads: false, parameters: Vec::new() };
        let record = Record { file, version, session: nothing, calls: Vec::new(), events: Vec::new(), is_whole: false };
        let mut reading = Reading { record, pending: HashMap::new(), opened: HashMap::new() };
        reading.entries()?;
        let mut record = reading.record;
        find_races(&mut record)?;
        Ok(record)
    }
}

/// A record that is being read.
struct Reading {
    record: Record,
    /// The index and the kind of the calls that have begun and not ended.
    pending: HashMap<u64, usize>,
    /// The gate of each handle.
    opened: HashMap<u32, Gate>,
}

impl Reading {
    fn entries(&mut self) -> Result<(), String> {
        let file = std::mem::take(&mut self.record.file);
        let (mut at, mut is_finished) = (12, false);
        let result = loop {
            // A record that was cut ends here, without an error.
            let Some((header, rest)) = file[at..].split_first_chunk::<12>() else { break Ok(()) };
            let number = |n: usize| u32::from_le_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
            let (length, sum) = (number(0) as usize, number(4));
            if number(8) != crc32c(&header[..8], 0) {
                break Err("the entry's header is damaged".to_string());
            }
            if length > MAX_BODY {
                break Err(format!("the entry has {length} bytes, and {MAX_BODY} are possible"));
            }
            let Some(body) = rest.get(..length) else { break Ok(()) };
            if crc32c(body, 0) != sum {
                break Err("the entry is damaged (its checksum is wrong)".to_string());
            }
            if is_finished {
                break Err("an entry follows the last one".to_string());
            }
            let end = at + 12 + length;
            let fields = EntryFields::new(body, end, self.record.version);
            let (calls, pending) = (&self.record.calls, &self.pending);
            let range_of = |number: u64| pending.get(&number).and_then(|index| calls[*index].call.range());
            let entry = fields.entry(range_of).map_err(|wrong| format!("the entry {wrong}"));
            match entry.and_then(|entry| self.take(entry, at == 12)) {
                Ok(finished) => is_finished = finished,
                Err(why) => break Err(why),
            }
            at = end;
        };
        self.record.file = file;
        result.map_err(|why| format!("byte {at}: {why}"))?;
        if at == 12 { Err("the record ends before its first entry".into()) } else { Ok(()) }
    }

    /// Takes an entry. Whether it is the last one.
    fn take(&mut self, entry: Entry, is_first: bool) -> Result<bool, String> {
        let record = &mut self.record;
        if is_first != matches!(entry, Entry::Session(_)) {
            return Err("the first entry, and only that, says what is recorded".into());
        }
        match entry {
            Entry::Session(session) => record.session = session,
            Entry::Finish { lost } => {
                record.is_whole = lost == 0;
                return Ok(true);
            }
            Entry::Start { number, gate, handle, call } => {
                let index = record.calls.len();
                if index == MAX_CALLS {
                    return Err(format!("the record has more than {MAX_CALLS} calls: use rbdkit-filter replay"));
                }
                if self.pending.insert(number, index).is_some() {
                    return Err(format!("call {number} begins twice"));
                }
                let is_open = matches!(call, EntryCall::Open { .. });
                let is_right = match self.opened.get(&handle) {
                    _ if call.is_before_open() => handle == 0,
                    None => is_open,
                    Some(of) => !is_open && *of == gate,
                };
                if !is_right {
                    return Err(format!("call {number} is of the handle {handle}, which is not possible here"));
                }
                if is_open {
                    self.opened.insert(handle, gate);
                }
                record.events.push(Event::Begins(index));
                record.calls.push(RecordedCall { number, gate, handle, call, outcome: None, is_racy: false });
            }
            Entry::End { number, kind, outcome } => {
                let begun = self.pending.remove(&number).filter(|index| kind_of(&record.calls[*index].call) == kind);
                let index = begun.ok_or_else(|| format!("call {number} ends, and did not begin like this"))?;
                record.events.push(Event::Ends(index));
                record.calls[index].outcome = Some(outcome);
            }
        }
        Ok(false)
    }
}

/// The format's number of a call.
fn kind_of(call: &EntryCall) -> u8 {
    match call {
        EntryCall::Open { .. } => 0,
        EntryCall::Pread { .. } => 1,
        EntryCall::Pwrite { .. } => 2,
        EntryCall::Flush => 3,
        EntryCall::Trim { .. } => 4,
        EntryCall::Zero { .. } => 5,
        EntryCall::Cache { .. } => 6,
        EntryCall::Extents { .. } => 7,
        EntryCall::BlockSizes => 8,
        EntryCall::Description => 9,
        EntryCall::Disk => 10,
        EntryCall::Finalize => 11,
        EntryCall::Close => 12,
        EntryCall::Preconnect { .. } => 13,
        EntryCall::ListExports { .. } => 14,
        EntryCall::DefaultExport { .. } => 15,
    }
}

/// The most reads and changes under way at once: those of 16 busy clients. Each is compared with
/// all others.
const MAX_ACTIVE: usize = 1 << 12;

/// Finds the calls that had a change of the same bytes beside them, or read bytes of which nobody
/// knows what was written last.
///
/// # Errors
/// Too many calls are under way at once.
fn find_races(record: &mut Record) -> Result<(), String> {
    for gate in [Gate::Above, Gate::Below] {
        let (mut active, mut uncertain): (Vec<usize>, Ranges) = (Vec::new(), Ranges::default());
        for event in &record.events {
            let (Event::Begins(index) | Event::Ends(index)) = *event;
            let call = &record.calls[index];
            let Some((offset, length)) = call.call.range().filter(|_| call.gate == gate) else { continue };
            if matches!(event, Event::Ends(_)) {
                active.retain(|other| *other != index);
                continue;
            }
            let changes = call.call.changes();
            let mut is_racy = !changes && uncertain.touches(offset, length);
            if changes {
                uncertain.remove(offset, length);
            }
            let mut others = Vec::new();
            for other in &active {
                let with = &record.calls[*other].call;
                let (begin, size) = with.range().unwrap_or_default();
                let (from, to) = (begin.max(offset), (begin + size).min(offset + length));
                if from < to && (changes || with.changes()) {
                    others.push(*other);
                    if changes && with.changes() {
                        uncertain.add(from, to - from);
                    }
                }
            }
            is_racy |= !others.is_empty();
            others.into_iter().for_each(|other| record.calls[other].is_racy = true);
            record.calls[index].is_racy = is_racy;
            active.push(index);
            if active.len() > MAX_ACTIVE {
                return Err(format!("has more than {MAX_ACTIVE} calls under way at once: use rbdkit-filter replay"));
            }
        }
    }
    Ok(())
}
