//! What a client may expect to read: a model of the export, byte by byte.

use super::content::{self, UNIT, units};
use super::disk::Disk;
use super::promise::Promise;
use super::steps::Request;

/// What is known of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    /// Nothing yet: it is what the disk below had at first, or the first read learns it.
    Nothing,
    /// It may read as anything, each time: it was trimmed, or a write of it failed.
    Undefined,
    /// What was written.
    Written,
    /// What was zeroed.
    Zeroed,
    /// What an earlier read returned.
    Read,
}

const NOTHING: u8 = Known::Nothing as u8;
const UNDEFINED: u8 = Known::Undefined as u8;

/// The model.
pub struct Model {
    promise: Promise,
    /// The seed and size of the disk below, while bytes that were not changed have to be as there.
    base: Option<(u64, u64)>,
    bytes: Vec<u8>,
    /// The byte before its last change, to recognise answers that are too old.
    before: Vec<u8>,
    /// [`Known`] as a number, because a vector of zeroes costs nothing until it is used.
    known: Vec<u8>,
    /// The units of which more may be known than nothing.
    is_used: Vec<bool>,
}

/// How many bytes decide whether bytes were moved.
const WINDOW: usize = 16;

/// How far away moved bytes are looked for.
const REACH: usize = 64 << 10;

impl Model {
    /// A model of an export of this size, over a disk of this size whose content follows from a
    /// seed.
    pub fn new(promise: Promise, size: usize, disk_seed: u64, disk_size: u64) -> Model {
        Model {
            promise,
            base: (promise == Promise::Identity).then_some((disk_seed, disk_size)),
            bytes: vec![0; size],
            before: vec![0; size],
            known: vec![NOTHING; size],
            is_used: vec![false; size.div_ceil(UNIT)],
        }
    }

    /// Forgets all content, because it may have changed.
    pub fn forget(&mut self) {
        self.base = None;
        for (unit, used) in self.is_used.iter_mut().enumerate() {
            if !std::mem::take(used) {
                continue;
            }
            let end = ((unit + 1) * UNIT).min(self.known.len());
            self.known[unit * UNIT..end].fill(NOTHING);
        }
    }

    /// Where the content of the disk below counts: up to this offset.
    fn base_end(&self) -> u64 {
        self.base.map_or(0, |(_, size)| size)
    }

    /// The bytes of a range, with those of the disk below where nothing else is known.
    fn expected(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = self.bytes[range.clone()].to_vec();
        if let Some((seed, _)) = self.base {
            let mut below = vec![0; bytes.len()];
            content::initial(&mut below, seed, range.start as u64);
            for (at, byte) in range.clone().zip(&mut bytes) {
                if self.known[at] == NOTHING && (at as u64) < self.base_end() {
                    *byte = below[at - range.start];
                }
            }
        }
        bytes
    }

    /// Whether something is expected of a byte.
    fn is_known(&self, at: usize) -> bool {
        match self.known[at] {
            NOTHING => (at as u64) < self.base_end(),
            UNDEFINED => false,
            _ => true,
        }
    }

    fn mark(&mut self, range: std::ops::Range<usize>, known: Known) {
        self.is_used[units(range.start as u64, range.len() as u64)].fill(true);
        self.known[range].fill(known as u8);
    }

    /// An operation that changes content has succeeded.
    pub fn apply(&mut self, operation: &Request) {
        let Some((offset, length)) = operation.range().filter(|_| operation.changes()) else { return };
        if self.promise == Promise::Own {
            return self.forget();
        }
        let range = offset as usize..(offset + length) as usize;
        let before = self.expected(range.clone());
        self.before[range.clone()].copy_from_slice(&before);
        let known = match *operation {
            Request::Pwrite { fill, .. } => {
                content::fill(&mut self.bytes[range.clone()], fill, offset);
                Known::Written
            }
            Request::Zero { .. } => {
                self.bytes[range.clone()].fill(0);
                Known::Zeroed
            }
            _ => Known::Undefined,
        };
        self.mark(range, known);
    }

    /// An operation that changes content has failed: nobody knows which bytes it changed.
    pub fn doubt(&mut self, operation: &Request) {
        let Some((offset, length)) = operation.range().filter(|_| operation.changes()) else { return };
        if self.promise == Promise::Own {
            return self.forget();
        }
        self.mark(offset as usize..(offset + length) as usize, Known::Undefined);
    }

    /// Compares what a read returned with what is known, and learns the rest.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn read(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        let begin = offset as usize;
        let expected = self.expected(begin..begin + data.len());
        self.is_used[units(offset, data.len() as u64)].fill(true);
        for (at, (byte, expected)) in (begin..).zip(data.iter().zip(&expected)) {
            if self.is_known(at) {
                if byte != expected {
                    return Err(self.difference(at, &data[at - begin..]));
                }
            } else if self.known[at] == NOTHING {
                (self.bytes[at], self.known[at]) = (*byte, Known::Read as u8);
            }
        }
        Ok(())
    }

    /// Checks the extents of a range against what is known.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn zero_extent(&self, offset: u64, length: u64) -> Result<(), String> {
        let end = (offset + length).min(self.bytes.len() as u64) as usize;
        let begin = (offset as usize).min(end);
        for (at, expected) in (begin..).zip(self.expected(begin..end)) {
            if self.is_known(at) && expected != 0 {
                let what = self.source(at);
                return Err(format!("says that offset {at} reads as zero, but {what} {expected:#04x}"));
            }
        }
        Ok(())
    }

    /// Compares the disk below with what is known.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn disk(&self, disk: &Disk) -> Result<(), String> {
        let is_used = |unit| self.is_used.get(unit).is_some_and(|used| *used);
        disk.inspect(is_used, |offset, below| {
            let begin = (offset as usize).min(self.bytes.len());
            let end = (begin + below.len()).min(self.bytes.len());
            for (at, (byte, expected)) in (begin..).zip(below.iter().zip(self.expected(begin..end))) {
                if self.is_known(at) && *byte != expected {
                    let what = self.source(at);
                    let has = format!("the disk below has {byte:#04x} at offset {at} at the end");
                    return Err(format!("{has}, but {what} {expected:#04x}"));
                }
            }
            Ok(())
        })
    }

    /// Where the byte comes from. The byte follows in the sentence.
    fn source(&self, at: usize) -> &'static str {
        match self.known[at] {
            known if known == Known::Written as u8 => "what was written there is",
            known if known == Known::Zeroed as u8 => "it was zeroed:",
            known if known == Known::Read as u8 => "an earlier read returned",
            _ => "the disk below had at first",
        }
    }

    /// The bytes `got` begin at offset `at`, where the first one is wrong.
    fn difference(&self, at: usize, got: &[u8]) -> String {
        let first = at.saturating_sub(REACH);
        let area = self.expected(first..self.bytes.len().min(at + REACH));
        let (what, expected) = (self.source(at), area[at - first]);
        let mut text = format!("returns {:#04x} at offset {at}, but {what} {expected:#04x}", got[0]);
        let window = &got[..got.len().min(WINDOW)];
        if self.before[at..at + window.len()] == *window && self.known[at] == Known::Written as u8 {
            text.push_str("; the byte is the one from before that write");
        } else if window.len() == WINDOW
            && window.iter().any(|byte| *byte != window[0])
            && let Some(found) = area.windows(WINDOW).position(|bytes| bytes == window)
        {
            text.push_str(&format!("; the bytes are those of offset {}", first + found));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::Flags;

    use super::*;

    fn write(offset: u64, length: u32, fill: u64) -> Request {
        Request::Pwrite { offset, length, fill, flags: Flags::NONE }
    }

    fn content(length: usize, fill: u64, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; length];
        content::fill(&mut bytes, fill, offset);
        bytes
    }

    #[test]
    fn reads_have_to_return_what_was_written_or_read_before() {
        let mut model = Model::new(Promise::Bijective, 4096, 0, 0);
        model.read(0, &[7; 64]).unwrap();
        model.read(32, &[7; 64]).unwrap();
        assert_eq!(model.read(95, &[8]).unwrap_err(), "returns 0x08 at offset 95, but an earlier read returned 0x07");
        model.apply(&write(0, 64, 5));
        model.read(8, &content(32, 5, 8)).unwrap();
        let old = model.read(0, &[7; 64]).unwrap_err();
        assert!(old.ends_with("; the byte is the one from before that write"), "{old}");
        let moved = model.read(0, &content(32, 5, 1)).unwrap_err();
        assert!(moved.ends_with("; the bytes are those of offset 1"), "{moved}");
        model.doubt(&write(0, 64, 6));
        model.read(0, &[9; 64]).unwrap();
        model.read(0, &[8; 64]).unwrap();
    }

    #[test]
    fn an_identity_reads_what_the_disk_below_had_at_first() {
        let mut below = vec![0; 200 << 10];
        content::initial(&mut below, 3, 0);
        let mut model = Model::new(Promise::Identity, below.len(), 3, below.len() as u64);
        model.read(1000, &below[1000..90_000]).unwrap();
        let data = below.iter().position(|byte| *byte != 0).unwrap();
        assert!(model.zero_extent(data as u64, 1).unwrap_err().contains("but the disk below had at first 0x"));
        model.apply(&Request::Zero { offset: data as u64, length: 50, flags: Flags::NONE });
        model.zero_extent(data as u64, 50).unwrap();
        assert!(model.read(data as u64, &below[data..data + 1]).unwrap_err().contains("but it was zeroed: 0x00"));
        model.forget();
        model.read(data as u64, &[77]).unwrap();
    }

    #[test]
    fn after_a_change_a_filter_of_its_own_rules_may_return_anything_but_the_same_twice() {
        let mut model = Model::new(Promise::Own, 4096, 0, 0);
        model.read(0, &[1; 8]).unwrap();
        assert!(model.read(0, &[2; 8]).is_err());
        model.apply(&write(1000, 8, 5));
        model.read(0, &[2; 8]).unwrap();
        assert!(model.read(0, &[1; 8]).is_err());
    }
}
