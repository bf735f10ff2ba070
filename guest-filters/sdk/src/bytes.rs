//! The data of a call as types: the payload, and buffers of the call's own.

use std::ops::{Bound, Deref, RangeBounds};

use crate::bindings::host::rbdkit::filter::{buffer, types::Errno};

/// The request's own buffer: a read fills it, and for a write it holds what the client wrote.
pub const PAYLOAD: u32 = 0;

/// How many bytes [`Bytes::modify`] takes into the guest at once. A request of 32 MiB then needs
/// no more memory than one of 64 KiB.
const PIECE: u32 = 64 << 10;

/// The bytes of a buffer in the host.
///
/// Ranges count from the start of the buffer: `..` is all of it, `..length` its first bytes. `..`
/// asks the host how long the buffer is: `..length` saves that call where the length is known. A
/// range outside of the buffer traps, and so does what the contract says of each function. Only
/// [`read`](Bytes::read), [`write`](Bytes::write) and [`modify`](Bytes::modify) move data into or
/// out of the guest; all other methods work in the host, at its speed.
#[derive(Debug)]
pub struct Bytes(u32);

/// The request's own bytes: a read fills them, and for a write they are what the client wrote. Its
/// methods are those of [`Bytes`].
#[derive(Clone, Copy, Debug)]
pub struct Payload;

impl Deref for Payload {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &Bytes(PAYLOAD)
    }
}

/// A buffer that this call allocated. Dropping it frees it. Its methods are those of [`Bytes`].
#[derive(Debug)]
pub struct Buffer(Bytes);

impl Buffer {
    /// Allocates `length` bytes, which read as zero.
    ///
    /// # Errors
    /// `Enomem` if the call has used up its allowance, `Einval` for 0 or more than 64 MiB.
    pub fn new(length: u32) -> Result<Buffer, Errno> {
        buffer::alloc(length).map(|id| Buffer(Bytes(id)))
    }
}

impl Deref for Buffer {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        buffer::free(self.id());
    }
}

impl Bytes {
    /// The number that the functions of `next`, `scratch` and `buffer` take.
    pub fn id(&self) -> u32 {
        self.0
    }

    /// In bytes.
    #[allow(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> u32 {
        buffer::len(self.0)
    }

    /// Start and length of a range.
    fn span(&self, range: impl RangeBounds<u32>) -> (u32, u32) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => *before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => *last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len(),
        };
        assert!(start <= end, "buffer: the range {start}..{end} ends before it starts");
        (start, end - start)
    }

    /// Copies a range into the guest. A whole request may be too long for the guest's memory: see
    /// [`modify`](Bytes::modify).
    pub fn read(&self, range: impl RangeBounds<u32>) -> Vec<u8> {
        let (at, length) = self.span(range);
        buffer::read(self.0, at, length)
    }

    /// Copies `data` from the guest into the buffer, from position `at` on.
    pub fn write(&self, at: u32, data: &[u8]) {
        buffer::write(self.0, at, data);
    }

    /// Changes a range with a function of the guest, in pieces of 64 KiB. The function gets the
    /// position of a piece's first byte in the buffer, and the piece.
    pub fn modify(&self, range: impl RangeBounds<u32>, mut change: impl FnMut(u32, &mut [u8])) {
        let (start, length) = self.span(range);
        let mut done = 0;
        while done < length {
            let at = start + done;
            let mut piece = buffer::read(self.0, at, PIECE.min(length - done));
            change(at, &mut piece);
            buffer::write(self.0, at, &piece);
            done += piece.len() as u32;
        }
    }

    /// Sets every byte of a range. Filling with zero takes no time.
    pub fn fill(&self, range: impl RangeBounds<u32>, byte: u8) {
        let (at, length) = self.span(range);
        buffer::fill(self.0, at, length, byte);
    }

    /// Copies a range of another buffer, or of this one, to position `at` of this one.
    pub fn copy(&self, at: u32, from: &Bytes, range: impl RangeBounds<u32>) {
        let (from_at, length) = from.span(range);
        buffer::copy(self.0, at, from.0, from_at, length);
    }

    /// Whether every byte of a range is zero.
    pub fn is_zero(&self, range: impl RangeBounds<u32>) -> bool {
        let (at, length) = self.span(range);
        buffer::is_zero(self.0, at, length)
    }

    /// Where a range first differs from the bytes of `other` from `at` on, counted from its start.
    pub fn mismatch(&self, range: impl RangeBounds<u32>, other: &Bytes, at: u32) -> Option<u32> {
        let (start, length) = self.span(range);
        buffer::mismatch(self.0, start, other.0, at, length)
    }

    /// XORs byte i of a range with the byte of `key` at position (`skip` + i) modulo the key's
    /// length, which is 1 to 65536. With the request's offset as `skip` each byte of the disk gets
    /// its own byte of the key.
    pub fn xor(&self, range: impl RangeBounds<u32>, key: &[u8], skip: u64) {
        let (at, length) = self.span(range);
        buffer::xor(self.0, at, length, key, skip);
    }

    /// Replaces each byte of a range by the byte of `table` at that position.
    pub fn translate(&self, range: impl RangeBounds<u32>, table: &[u8; 256]) {
        let (at, length) = self.span(range);
        buffer::translate(self.0, at, length, table);
    }

    /// Reverses the order of the bytes in each group of `width` bytes: 2, 4 or 8. The range has to
    /// be a multiple of it.
    pub fn swap(&self, range: impl RangeBounds<u32>, width: u32) {
        let (at, length) = self.span(range);
        buffer::swap(self.0, at, length, width);
    }

    /// Where `pattern` (1 to 65536 bytes) begins first within a range, counted from its start.
    pub fn find(&self, range: impl RangeBounds<u32>, pattern: &[u8]) -> Option<u32> {
        let (at, length) = self.span(range);
        buffer::find(self.0, at, length, pattern)
    }

    /// The SHA-256 digest of a range, 32 bytes.
    pub fn sha256(&self, range: impl RangeBounds<u32>) -> Vec<u8> {
        let (at, length) = self.span(range);
        buffer::sha256(self.0, at, length)
    }

    /// The CRC-32C checksum of a range. `before` is the checksum of the bytes before it, or 0.
    pub fn crc32c(&self, range: impl RangeBounds<u32>, before: u32) -> u32 {
        let (at, length) = self.span(range);
        buffer::crc32c(self.0, at, length, before)
    }
}
