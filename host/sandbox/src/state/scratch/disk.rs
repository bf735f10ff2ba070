//! The system calls of a scratch file.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;

use rbdkit_plugin_api::{Buffer, Errno, Fill, Result, Span};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno as Raw, ReadWriteFlags};

/// Bytes of a buffer, and where they belong in the file.
#[derive(Clone, Copy)]
pub(super) struct FilePart {
    pub(super) span: Span,
    pub(super) offset: u64,
}

impl FilePart {
    /// The offset after its last byte in the file. It does not overflow, because callers check
    /// every range with `fits`.
    pub(super) fn end(self) -> u64 {
        self.offset + u64::from(self.span.len)
    }

    /// The first `n` bytes of it, or all of it if it is shorter.
    pub(super) fn first(self, n: u32) -> FilePart {
        FilePart { span: Span::new(self.span.at, self.span.len.min(n)), ..self }
    }

    /// The part after the first `n` bytes.
    pub(super) fn after(self, n: u32) -> FilePart {
        FilePart { span: Span::new(self.span.at + n, self.span.len - n), offset: self.offset + u64::from(n) }
    }
}

/// Makes a file in `dir` that has no name.
pub(super) fn nameless(dir: &Path) -> Result<File, Raw> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        // The errors of kernels and file systems without O_TMPFILE.
        Err(Raw::NOTSUP | Raw::ISDIR | Raw::INVAL) => named_and_removed(dir),
        result => result.map(File::from),
    }
}

/// Makes a file with a random name, and removes the name at once.
pub(super) fn named_and_removed(dir: &Path) -> Result<File, Raw> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
    // The error of `make_in` has no number, so the one of `open` is kept.
    let mut raw = Raw::EXIST;
    let made = tempfile::Builder::new().prefix("rbdkit-").suffix(".tmp").make_in(dir, |path| {
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
        file.map(File::from).map_err(|error| {
            raw = error;
            error.into()
        })
    });
    // Dropping what is left of the `NamedTempFile` removes the name.
    made.map(tempfile::NamedTempFile::into_file).map_err(|_| raw)
}

/// Reads bytes that are in the page cache. Returns how many it read, or None if it would have to
/// wait for the disk.
pub(super) fn read_now(file: &File, buffer: &mut Buffer, part: FilePart) -> Result<Option<u32>> {
    let mut got = Ok(0);
    let full = buffer.fill_with(part.span, |bytes| {
        let wanted = bytes.len();
        got = rustix::io::preadv2(file, &mut [IoSliceMut::new(bytes)], part.offset, ReadWriteFlags::NOWAIT);
        if got == Ok(wanted) { Ok(()) } else { Err(()) }
    });
    match got {
        Ok(_) if full.is_ok() => Ok(Some(part.span.len)),
        Ok(0) => {
            // The file ends before the page does.
            buffer.set_zero(part.span);
            Ok(Some(part.span.len))
        }
        Ok(n) => {
            buffer.mark(Span::new(part.span.at, n as u32), Fill::Data);
            Ok(Some(n as u32))
        }
        Err(Raw::AGAIN | Raw::INTR | Raw::NOTSUP | Raw::NOSYS) => Ok(None),
        Err(raw) => Err(std::io::Error::from(raw).into()),
    }
}

/// Fills all of `bytes`. Beyond the end of the file they are zero.
pub(super) fn read_all(file: &File, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(Raw::INTR) => {}
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    Ok(())
}

/// Writes all of `bytes`. If that fails, the ranges `new`, which were zero before, are made to read
/// as zero again.
pub(super) fn write_or_erase(file: &File, bytes: &[u8], offset: u64, new: &[(u64, u64)]) -> Result<()> {
    let result = write_all(file, bytes, offset);
    if result.is_err() {
        for &(from, to) in new {
            let _ = erase(file, from, to);
        }
    }
    result
}

/// Writes all of `bytes`.
pub(super) fn write_all(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::Eio.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Raw::INTR) => {}
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    Ok(())
}

/// Makes the bytes `from..to` read as zero and frees whole pages. Writes zeroes where the file
/// system cannot punch holes.
pub(super) fn erase(file: &File, from: u64, to: u64) -> Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from) {
            Ok(()) => return Ok(()),
            Err(Raw::INTR) => {}
            Err(Raw::NOTSUP | Raw::NOSYS) => break,
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZEROES.len() as u64);
        write_all(file, &ZEROES[..n as usize], at)?;
        at += n;
    }
    Ok(())
}
