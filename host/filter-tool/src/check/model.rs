//! What a client may expect to read: a model of the export, byte by byte.

use super::content;
use super::promise::Promise;
use super::steps::Operation;

/// What is known of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    /// Nothing yet. The first read learns it.
    Nothing,
    /// It may read as anything, each time: it was trimmed, or a write of it failed.
    Undefined,
    /// What was written.
    Written,
    /// What was zeroed.
    Zeroed,
    /// What an earlier read returned.
    Read,
    /// What the disk below holds.
    Below,
}

const NOTHING: u8 = Known::Nothing as u8;
const UNDEFINED: u8 = Known::Undefined as u8;

/// The model.
pub struct Model {
    promise: Promise,
    bytes: Vec<u8>,
    /// The byte before its last change, to recognise answers that are too old.
    before: Vec<u8>,
    /// [`Known`] as a number, because a vector of zeroes costs nothing until it is used.
    known: Vec<u8>,
}

/// How many bytes decide whether bytes were moved.
const WINDOW: usize = 16;

/// How far away moved bytes are looked for.
const REACH: usize = 64 << 10;

impl Model {
    /// A model of an export of this size, over a disk with this content.
    pub fn new(promise: Promise, size: usize, below: &[u8]) -> Model {
        let (mut bytes, mut known) = (vec![0; size], vec![Known::Nothing as u8; size]);
        if promise == Promise::Identity {
            let common = size.min(below.len());
            bytes[..common].copy_from_slice(&below[..common]);
            known[..common].fill(Known::Below as u8);
        }
        Model { promise, before: vec![0; size], bytes, known }
    }

    /// The size of the export that is tested.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Forgets all content, because it may have changed.
    pub fn forget(&mut self) {
        self.known.fill(Known::Nothing as u8);
    }

    /// An operation that changes content has succeeded.
    pub fn apply(&mut self, operation: &Operation) {
        let Some((offset, length)) = operation.range().filter(|_| operation.changes()) else { return };
        if self.promise == Promise::Own {
            return self.forget();
        }
        let range = offset as usize..(offset + length) as usize;
        self.before[range.clone()].copy_from_slice(&self.bytes[range.clone()]);
        let known = match *operation {
            Operation::Pwrite { fill, .. } => {
                content::fill(&mut self.bytes[range.clone()], fill, offset);
                Known::Written
            }
            Operation::Zero { .. } => {
                self.bytes[range.clone()].fill(0);
                Known::Zeroed
            }
            _ => Known::Undefined,
        };
        self.known[range].fill(known as u8);
    }

    /// An operation that changes content has failed: nobody knows which bytes it changed.
    pub fn doubt(&mut self, operation: &Operation) {
        let Some((offset, length)) = operation.range().filter(|_| operation.changes()) else { return };
        if self.promise == Promise::Own {
            return self.forget();
        }
        self.known[offset as usize..(offset + length) as usize].fill(Known::Undefined as u8);
    }

    /// Compares what a read returned with what is known, and learns the rest.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn read(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        let begin = offset as usize;
        for (at, byte) in (begin..).zip(data) {
            match self.known[at] {
                NOTHING => (self.bytes[at], self.known[at]) = (*byte, Known::Read as u8),
                UNDEFINED => {}
                _ if self.bytes[at] != *byte => return Err(self.difference(at, &data[at - begin..])),
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the extents of a range against what is known.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn zero_extent(&self, offset: u64, length: u64) -> Result<(), String> {
        let end = (offset + length).min(self.size());
        for at in offset.min(end) as usize..end as usize {
            if !matches!(self.known[at], NOTHING | UNDEFINED) && self.bytes[at] != 0 {
                let what = self.source(at);
                return Err(format!("says that offset {at} reads as zero, but {what} {:#04x}", self.bytes[at]));
            }
        }
        Ok(())
    }

    /// Compares the disk below with what is known.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn disk(&self, below: &[u8]) -> Result<(), String> {
        let both = below.iter().zip(&self.bytes).enumerate();
        for (at, (byte, expected)) in both.filter(|(_, (byte, expected))| byte != expected) {
            if !matches!(self.known[at], NOTHING | UNDEFINED) {
                let what = self.source(at);
                return Err(format!(
                    "the disk below has {byte:#04x} at offset {at} at the end, but {what} {expected:#04x}"
                ));
            }
        }
        Ok(())
    }

    /// Where the byte comes from. The byte follows in the sentence.
    fn source(&self, at: usize) -> &'static str {
        match self.known[at] {
            known if known == Known::Written as u8 => "what was written there is",
            known if known == Known::Zeroed as u8 => "it was zeroed:",
            known if known == Known::Read as u8 => "an earlier read returned",
            _ => "the disk below has",
        }
    }

    /// The bytes `got` begin at offset `at`, where the first one is wrong.
    fn difference(&self, at: usize, got: &[u8]) -> String {
        let what = self.source(at);
        let mut text = format!("returns {:#04x} at offset {at}, but {what} {:#04x}", got[0], self.bytes[at]);
        let window = &got[..got.len().min(WINDOW)];
        let is_old = self.before[at..at + window.len()] == *window && self.known[at] == Known::Written as u8;
        if is_old {
            text.push_str("; the byte is the one from before that write");
        } else if window.len() == WINDOW && window.iter().any(|byte| *byte != window[0]) {
            let first = at.saturating_sub(REACH);
            let area = &self.bytes[first..self.bytes.len().min(at + REACH)];
            if let Some(found) = area.windows(WINDOW).position(|bytes| bytes == window) {
                text.push_str(&format!("; the bytes are those of offset {}", first + found));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rbdkit_plugin_api::Flags;

    use super::*;

    fn write(offset: u64, length: u32, fill: u64) -> Operation {
        Operation::Pwrite { offset, length, fill, flags: Flags::NONE }
    }

    fn content(length: usize, fill: u64, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; length];
        content::fill(&mut bytes, fill, offset);
        bytes
    }

    #[test]
    fn reads_have_to_return_what_was_written_or_read_before() {
        let mut model = Model::new(Promise::Bijective, 4096, &[]);
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
    fn the_disk_below_has_to_hold_what_an_identity_wrote() {
        let below = content(4096, 3, 0);
        let mut model = Model::new(Promise::Identity, 4096, &below);
        model.disk(&below).unwrap();
        model.apply(&Operation::Zero { offset: 100, length: 50, flags: Flags::NONE });
        assert!(model.disk(&below).unwrap_err().contains("but it was zeroed: 0x00"));
        model.zero_extent(100, 50).unwrap();
        assert!(model.zero_extent(0, 200).is_err());
    }

    #[test]
    fn after_a_change_a_filter_of_its_own_rules_may_return_anything_but_the_same_twice() {
        let mut model = Model::new(Promise::Own, 4096, &[]);
        model.read(0, &[1; 8]).unwrap();
        assert!(model.read(0, &[2; 8]).is_err());
        model.apply(&write(1000, 8, 5));
        model.read(0, &[2; 8]).unwrap();
        assert!(model.read(0, &[1; 8]).is_err());
    }
}
