//! Parts of a buffer, and what is known of their bytes.

use std::ops::Range;

/// A part of a buffer: `at` bytes from its beginning, `len` bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the beginning of the buffer.
    pub at: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// The span of `len` bytes at `at`.
    pub fn new(at: u32, len: u32) -> Span {
        Span { at, len }
    }

    /// One past the last byte; none if that does not fit 32 bits.
    pub fn end(self) -> Option<u32> {
        self.at.checked_add(self.len)
    }

    pub(crate) fn range(self) -> Range<usize> {
        let at = self.at as usize;
        at..at + self.len as usize
    }
}

/// What is known of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Not written in this request.
    Unfilled,
    /// Reads as zero; the bytes themselves may be anything.
    Zero,
    /// The bytes are valid.
    Data,
}
