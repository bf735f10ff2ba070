//! A part of the disk, and what the model knows of each of its bytes.

use std::fmt;

/// What the model knows of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It has the model's value.
    Value,
    /// It was trimmed: it has the model's value or is zero.
    ValueOrZero,
    /// A write of it failed: it may have any value until it is written again.
    Nothing,
}

/// A part of the disk.
#[derive(Clone)]
pub(super) struct Stripe {
    pub start: u64,
    pub bytes: Vec<u8>,
    pub known: Vec<Known>,
}

impl Stripe {
    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn range(&self, offset: u64, length: u64) -> Option<(usize, usize)> {
        let from = offset.max(self.start);
        let to = (offset + length).min(self.end());
        (from < to).then(|| ((from - self.start) as usize, (to - self.start) as usize))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let at = (offset - self.start) as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.known[at..at + data.len()].fill(Known::Value);
    }

    pub fn mark(&mut self, offset: u64, length: u32, known: Known) {
        let at = (offset - self.start) as usize;
        for old in &mut self.known[at..at + length as usize] {
            if *old != Known::Nothing {
                *old = known;
            }
        }
    }

    /// The first byte at which `data`, read at `offset`, contradicts the model.
    pub fn difference(&self, offset: u64, data: &[u8]) -> Option<Difference> {
        let (from, to) = self.range(offset, data.len() as u64)?;
        let skip = (self.start + from as u64 - offset) as usize;
        let read = &data[skip..skip + (to - from)];
        // By far the most frequent case, compared at the speed of memcmp.
        if read == &self.bytes[from..to] {
            return None;
        }
        (from..to).zip(read).find_map(|(at, &byte)| {
            let right = match self.known[at] {
                Known::Value => byte == self.bytes[at],
                Known::ValueOrZero => byte == self.bytes[at] || byte == 0,
                Known::Nothing => true,
            };
            (!right).then(|| Difference {
                offset: self.start + at as u64,
                read: byte,
                model: self.bytes[at],
                known: self.known[at],
            })
        })
    }

    /// Records that the server declared the range zero. Later reads have to agree. The answer is
    /// the first byte that cannot be zero.
    pub fn declare_zero(&mut self, offset: u64, length: u64) -> Option<Difference> {
        let (from, to) = self.range(offset, length)?;
        for at in from..to {
            match self.known[at] {
                Known::Value if self.bytes[at] != 0 => {
                    let (offset, model) = (self.start + at as u64, self.bytes[at]);
                    return Some(Difference { offset, read: 0, model, known: Known::Value });
                }
                Known::Value => {}
                Known::ValueOrZero | Known::Nothing => (self.bytes[at], self.known[at]) = (0, Known::Value),
            }
        }
        None
    }
}

pub(super) struct Difference {
    offset: u64,
    read: u8,
    model: u8,
    known: Known,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { offset, read, model, known } = self;
        write!(f, "byte {offset} ({offset:#x}) is {read:#04x} and should be {model:#04x} ({known:?})")
    }
}
