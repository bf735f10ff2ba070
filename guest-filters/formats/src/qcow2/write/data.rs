//! The bytes of clusters below: as the disk has them, or encrypted.
//!
//! A sector of an encrypted image is encrypted as a whole, and its key stream depends on its place
//! in the image. So a write to a part of a sector reads the sector, changes it, and writes it.
//! Encrypted bytes and those that become so never enter the guest.

use std::ops::Range;

use rbdkit_filter_sdk::buffer::Buffer;
use rbdkit_filter_sdk::image::{Error, Source};

use super::ports::Payload;
use super::way::Way;
use super::writer::{Part, Writer};
use crate::qcow2::image::{Cipher, PIECE, SECTOR};

/// Bytes of the disk that follow each other in the image too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the first is in the image.
    host: u64,
    /// Where they are on the disk.
    disk: Range<u64>,
}

impl Span {
    /// Appends bytes. They become one with the last ones, if they follow them.
    pub(super) fn push(spans: &mut Vec<Span>, host: u64, disk: Range<u64>) {
        match spans.last_mut() {
            Some(last) if last.disk.end == disk.start && last.host + (disk.start - last.disk.start) == host => {
                last.disk.end = disk.end;
            }
            _ => spans.push(Span { host, disk }),
        }
    }
}

impl Writer {
    /// Whether a new cluster, whose bytes are zero, reads as zero.
    pub(super) fn is_zero_when_new(&self) -> bool {
        self.image.cipher().is_none()
    }

    /// Whether a write of these bytes of the disk copies a part of a sector.
    pub(super) fn splits_sector(&self, start: u64, end: u64) -> bool {
        let is_split = !start.is_multiple_of(SECTOR) || !end.is_multiple_of(SECTOR);
        is_split && self.image.cipher().is_some()
    }

    /// Writes the bytes of a part's payload to their places.
    pub(super) fn write_spans(&self, part: &Part, spans: &[Span], payload: Payload) -> Result<(), Error> {
        for Span { host, disk } in spans {
            let (at, length) = (part.at + (disk.start - part.offset), disk.end - disk.start);
            match (self.image.cipher(), payload) {
                (Some(cipher), payload) => self.write_encrypted(&**cipher, *host, disk.clone(), payload, at)?,
                (None, Payload::Guest(bytes)) => {
                    self.below.write(*host, &bytes[at as usize..(at + length) as usize])?;
                }
                (None, Payload::Buffer(buffer)) => {
                    self.below.write_buffer(*host, length as u32, buffer, at as u32)?;
                }
                (None, Payload::Zeroes) => self.below.zero(*host, length)?,
            }
        }
        Ok(())
    }

    /// Encrypts the bytes of a payload from `at` on, and writes them to `host`.
    fn write_encrypted(
        &self,
        cipher: &dyn Cipher,
        host: u64,
        disk: Range<u64>,
        payload: Payload,
        at: u64,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < disk.end - disk.start {
            let (offset, to) = (disk.start + done, host + done);
            let (skip, left) = (offset % SECTOR, disk.end - offset);
            if skip == 0 && left >= SECTOR {
                let most = if matches!(payload, Payload::Buffer(_)) { left } else { PIECE };
                let n = (left.min(most) / SECTOR * SECTOR) as u32;
                self.write_sectors(cipher, (to, offset), n, payload, at + done)?;
                done += u64::from(n);
                continue;
            }
            // The tables still have the place from which the rest of the sector is to be read.
            let n = left.min(SECTOR - skip);
            let buffer = Buffer::new(SECTOR as u32)?;
            let there = (self.image.size() - (offset - skip)).min(SECTOR);
            self.image.read_buffer(offset - skip, there as u32, &buffer, 0)?;
            put(payload, at + done, &buffer, skip as u32, n as u32);
            cipher.encrypt(&buffer, 0, SECTOR as u32, to - skip, offset - skip)?;
            self.below.write_buffer(to - skip, SECTOR as u32, &buffer, 0)?;
            done += n;
        }
        Ok(())
    }

    /// Writes whole sectors. `place` is where they are in the image, and on the disk.
    fn write_sectors(
        &self,
        cipher: &dyn Cipher,
        (host, offset): (u64, u64),
        length: u32,
        payload: Payload,
        at: u64,
    ) -> Result<(), Error> {
        if let Payload::Buffer(buffer) = payload {
            // No byte of a payload is written twice.
            cipher.encrypt(buffer, at as u32, length, host, offset)?;
            return Ok(self.below.write_buffer(host, length, buffer, at as u32)?);
        }
        let buffer = Buffer::new(length)?;
        put(payload, at, &buffer, 0, length);
        cipher.encrypt(&buffer, 0, length, host, offset)?;
        Ok(self.below.write_buffer(host, length, &buffer, 0)?)
    }

    /// Copies ranges of the disk to their places in the cluster at `host`. True if something was
    /// written.
    ///
    /// # Errors
    /// Those of next and of the backing disk, and a line if the image is wrong.
    pub(super) fn copy(&self, ranges: &[Range<u64>], host: u64, way: Way) -> Result<bool, Error> {
        let mut copied = false;
        for range in ranges {
            let to = host + range.start % self.cluster();
            // There may be a part of a cluster behind the end of the disk.
            let end = range.end.min(self.image.size()).max(range.start);
            copied |= match self.image.cipher() {
                Some(cipher) => self.copy_encrypted(&**cipher, range.clone(), end, to)?,
                None => self.copy_plain(range.clone(), end, to, way)?,
            };
        }
        Ok(copied)
    }

    fn copy_plain(&self, range: Range<u64>, end: u64, to: u64, way: Way) -> Result<bool, Error> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if end > range.start {
            self.image.read(range.start, &mut bytes[..(end - range.start) as usize])?;
        }
        let is_there = way == Way::New && bytes.iter().all(|byte| *byte == 0);
        if !is_there {
            self.below.write(to, &bytes)?;
        }
        Ok(!is_there)
    }

    fn copy_encrypted(&self, cipher: &dyn Cipher, range: Range<u64>, end: u64, to: u64) -> Result<bool, Error> {
        for offset in range.clone().step_by(PIECE as usize) {
            let n = PIECE.min(range.end - offset) as u32;
            let buffer = Buffer::new(n)?;
            let there = end.saturating_sub(offset).min(n.into());
            if there > 0 {
                self.image.read_buffer(offset, there as u32, &buffer, 0)?;
            }
            let host = to + (offset - range.start);
            cipher.encrypt(&buffer, 0, n, host, offset)?;
            self.below.write_buffer(host, n, &buffer, 0)?;
        }
        Ok(true)
    }
}

/// Puts `length` bytes of a payload into a buffer, at `to`.
fn put(payload: Payload, at: u64, buffer: &Buffer, to: u32, length: u32) {
    match payload {
        Payload::Guest(bytes) => buffer.write(to, &bytes[at as usize..at as usize + length as usize]),
        Payload::Buffer(from) => buffer.copy(to, from, at as u32..at as u32 + length),
        Payload::Zeroes => buffer.fill(to..to + length, 0),
    }
}
