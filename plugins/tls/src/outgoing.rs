//! Records that are encrypted and not sent.
//!
//! Long runs of the caller's bytes are encrypted where they are, a record at a time. Only what
//! stands around them is kept here: the head and the tag of each record. Short runs share a record,
//! into which they are copied.

use std::io::{self, IoSlice, Write};

use crate::cipher::{RECORD, Sealer, kind};
use crate::error::TlsError;

/// Bytes of the caller.
pub(crate) enum Plain<'a, 'b> {
    /// They stay as they are.
    Shared(&'a [IoSlice<'b>]),
    /// They may be encrypted where they are.
    Own(&'a mut [&'b mut [u8]]),
}

impl Plain<'_, '_> {
    /// No bytes.
    pub(crate) const NONE: Plain<'static, 'static> = Plain::Shared(&[]);

    /// The slice of this number. None: there are fewer.
    fn slice(&self, number: usize) -> Option<&[u8]> {
        match self {
            Plain::Shared(slices) => slices.get(number).map(|slice| &slice[..]),
            Plain::Own(slices) => slices.get(number).map(|slice| &slice[..]),
        }
    }

    /// All slices, with at most this many bytes.
    pub(crate) fn up_to(&self, most: usize) -> Vec<IoSlice<'_>> {
        let mut left = most;
        let mut all = Vec::new();
        let mut number = 0;
        while let Some(slice) = self.slice(number).filter(|_| left > 0) {
            let count = slice.len().min(left);
            left -= count;
            number += 1;
            all.push(IoSlice::new(&slice[..count]));
        }
        all
    }
}

/// What is sent one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Bytes of [`Outgoing::kept`].
    kept: usize,
    /// Then so many bytes of the caller are passed over, because they are in `kept`.
    copied: usize,
    /// Then so many bytes of the caller are sent. They are in one slice.
    in_place: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Heads and tags, and whole records with copies.
    kept: Vec<u8>,
    parts: Vec<Part>,
    /// Bytes that are sent.
    sent: usize,
}

/// A kept list of bytes up to this length is used again. The heads and tags of some records fit.
const SMALL: usize = 1024;

/// Where the next byte of the caller is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    slice: usize,
    at: usize,
}

impl Place {
    /// Goes on to the next slice while this one has no more. False: there are no more bytes.
    pub(crate) fn skip_empty(&mut self, plain: &Plain<'_, '_>) -> bool {
        while let Some(slice) = plain.slice(self.slice) {
            if self.at < slice.len() {
                return true;
            }
            *self = Place { slice: self.slice + 1, at: 0 };
        }
        false
    }

    /// Passes over this many bytes.
    fn pass(&mut self, plain: &Plain<'_, '_>, mut count: usize) {
        while count > 0 && self.skip_empty(plain) {
            let here = plain.slice(self.slice).unwrap_or_default().len() - self.at;
            let passed = here.min(count);
            (self.at, count) = (self.at + passed, count - passed);
        }
    }
}

impl Outgoing {
    /// Whether everything is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds bytes that are sent as they are.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        self.kept_more(bytes.len(), 0);
    }

    /// Adds a record with a copy of these bytes.
    pub(crate) fn put_record(&mut self, sealer: &mut Sealer, kind: u8, bytes: &[u8]) -> Result<(), TlsError> {
        let from = self.begin_record(sealer);
        self.kept.extend_from_slice(bytes);
        self.end_record(sealer, kind, from, 0)
    }

    /// Adds one record of the caller's bytes from `done` on, of at most `most` bytes. It returns
    /// their number, or 0 if what comes next should be encrypted where it is and `most` does not
    /// let it.
    pub(crate) fn put_data(
        &mut self,
        sealer: &mut Sealer,
        plain: &mut Plain<'_, '_>,
        place: &mut Place,
        most: usize,
    ) -> Result<usize, TlsError> {
        place.skip_empty(plain);
        if let Plain::Own(slices) = plain
            && let Some(slice) = slices.get_mut(place.slice)
            && is_long(slice.len() - place.at)
        {
            if most < RECORD {
                return Ok(0);
            }
            let from = place.at;
            place.at += RECORD;
            self.seal_in_place(sealer, &mut slice[from..]).map(|()| RECORD)
        } else {
            self.copy(sealer, plain, place, most)
        }
    }

    /// Encrypts the first [`RECORD`] of more bytes. The byte behind them is the same afterwards.
    fn seal_in_place(&mut self, sealer: &mut Sealer, bytes: &mut [u8]) -> Result<(), TlsError> {
        let end = RECORD + sealer.kind_length();
        // The kind is encrypted with the data, so for a moment it takes the place of the next byte.
        let next = bytes[RECORD];
        if end > RECORD {
            bytes[RECORD] = kind::DATA;
        }
        let sealed = sealer.seal(kind::DATA, &mut bytes[..end]);
        let encrypted_kind = std::mem::replace(&mut bytes[RECORD], next);
        let frame = sealed?;
        self.put(frame.head());
        if let Some(part) = self.parts.last_mut() {
            part.in_place = RECORD;
        }
        if end > RECORD {
            self.put(&[encrypted_kind]);
        }
        self.put(&frame.tag);
        Ok(())
    }

    /// Adds a record with a copy of the caller's next bytes, up to where the next long run begins.
    fn copy(
        &mut self,
        sealer: &mut Sealer,
        plain: &Plain<'_, '_>,
        place: &mut Place,
        most: usize,
    ) -> Result<usize, TlsError> {
        let from = self.begin_record(sealer);
        let mut count = 0;
        while place.skip_empty(plain) {
            let here = &plain.slice(place.slice).unwrap_or_default()[place.at..];
            let taken = here.len().min(RECORD.min(most) - count);
            let stays = matches!(plain, Plain::Own(_)) && is_long(here.len());
            if taken == 0 || stays {
                break;
            }
            self.kept.extend_from_slice(&here[..taken]);
            (count, place.at) = (count + taken, place.at + taken);
        }
        if count == 0 {
            self.kept.truncate(from);
            return Ok(0);
        }
        self.end_record(sealer, kind::DATA, from, count)?;
        Ok(count)
    }

    fn begin_record(&mut self, sealer: &Sealer) -> usize {
        let from = self.kept.len();
        self.kept.resize(from + sealer.head_length(), 0);
        from
    }

    fn end_record(&mut self, sealer: &mut Sealer, kind: u8, from: usize, copied: usize) -> Result<(), TlsError> {
        if sealer.kind_length() > 0 {
            self.kept.push(kind);
        }
        let body = from + sealer.head_length();
        let frame = match sealer.seal(kind, &mut self.kept[body..]) {
            Ok(frame) => frame,
            Err(error) => {
                // Nothing of it is sent in the clear.
                self.kept.truncate(from);
                return Err(error);
            }
        };
        self.kept[from..body].copy_from_slice(frame.head());
        self.kept.extend_from_slice(&frame.tag);
        self.kept_more(self.kept.len() - from, copied);
        Ok(())
    }

    /// More bytes are in `kept`, some of which are copies.
    fn kept_more(&mut self, count: usize, copied: usize) {
        match self.parts.last_mut().filter(|part| part.in_place == 0) {
            Some(part) => {
                part.kept += count;
                part.copied += copied;
            }
            None => self.parts.push(Part { kept: count, copied, in_place: 0 }),
        }
    }

    /// What is left to send, with the bytes of the caller among it. None: the caller's bytes are
    /// not those that were encrypted.
    fn unsent<'a>(&'a self, plain: &'a Plain<'_, '_>) -> Option<Vec<IoSlice<'a>>> {
        let mut slices = Vec::with_capacity(2 * self.parts.len());
        let mut skip = self.sent;
        let mut add = |bytes: &'a [u8]| {
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            if skipped < bytes.len() {
                slices.push(IoSlice::new(&bytes[skipped..]));
            }
        };
        let (mut kept, mut place) = (&self.kept[..], Place::default());
        for part in &self.parts {
            let (now, later) = kept.split_at(part.kept);
            kept = later;
            add(now);
            if part.copied + part.in_place > 0 {
                place.pass(plain, part.copied);
                place.skip_empty(plain);
            }
            if part.in_place > 0 {
                add(plain.slice(place.slice)?.get(place.at..place.at + part.in_place)?);
                place.pass(plain, part.in_place);
            }
        }
        Some(slices)
    }

    /// Sends more, with one call of `to`. `plain` begins with the bytes that were encrypted.
    pub(crate) fn send(&mut self, to: &mut dyn Write, plain: &Plain<'_, '_>) -> io::Result<usize> {
        let slices = self.unsent(plain).ok_or(io::ErrorKind::InvalidInput)?;
        let left: usize = slices.iter().map(|slice| slice.len()).sum();
        let count = to.write_vectored(&slices)?;
        drop(slices);
        self.sent += count;
        if count >= left {
            self.parts.clear();
            self.kept.clear();
            self.sent = 0;
            if self.kept.capacity() > SMALL {
                self.kept = Vec::new();
            }
        }
        Ok(count)
    }
}

/// Whether so many bytes of one slice are encrypted where they are. A byte follows the record.
fn is_long(length: usize) -> bool {
    length > RECORD
}
