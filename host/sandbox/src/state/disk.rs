//! The system calls of scratch files and of files that are kept.
//!
//! **Waiting.** Data in the page cache is read at once (`RWF_NOWAIT`). Small writes only copy into
//! the page cache and are made at once too ([`DirectWrites`]). All other I/O goes to threads that
//! may wait.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Buffer, Errno, Fill, Result, Span};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno as Raw, ReadWriteFlags};

/// Up to this many bytes are copied out of the page cache on the thread that serves the request.
/// Measured on ext4 with 2 busy cores, that takes 46 us for all of them and 8 us for 64 KiB.
const DIRECT_READ: u32 = 256 << 10;
/// Up to this many bytes are copied into the page cache on the thread that serves the request. That
/// takes 19 us if pages have to be found first. 256 KiB took 800 us, since the kernel waited for
/// the disk.
const DIRECT_WRITE: u32 = 64 << 10;
/// A direct write that took longer than this has waited for the disk.
const SLOW_WRITE: Duration = Duration::from_millis(2);
/// After a slow write, this many writes go to threads that may wait. It is a count and not a time:
/// on a busy machine one write in some hundreds is slow only because its thread was not scheduled,
/// and a second after each of these would be nearly all the time.
const INDIRECT_WRITES: u32 = 64;

/// Decides which writes of a file are made on the thread that serves the request.
///
/// If the kernel makes one of them wait, as it does with a process that writes faster than the
/// disk, the next writes go to threads that may wait.
#[derive(Debug, Default)]
pub(super) struct DirectWrites {
    /// How many of the next writes go to threads that may wait.
    indirect: AtomicU32,
}

impl DirectWrites {
    /// Makes a write of `length` bytes at once. None: it belongs to a thread that may wait.
    pub(super) fn make(&self, length: u32, write: impl FnOnce() -> Result<()>) -> Option<Result<()>> {
        if length > DIRECT_WRITE || self.takes_indirect() {
            return None;
        }
        let start = Instant::now();
        let result = write();
        if start.elapsed() > SLOW_WRITE {
            self.pause();
        }
        Some(result)
    }

    /// A write has waited for the disk.
    pub(super) fn pause(&self) {
        self.indirect.store(INDIRECT_WRITES, Ordering::Relaxed);
    }

    /// Counts down the writes that go to threads that may wait. Returns whether this write is one
    /// of them. Two calls at once may count the same one, which does no harm.
    fn takes_indirect(&self) -> bool {
        let left = self.indirect.load(Ordering::Relaxed);
        if left > 0 {
            self.indirect.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }
}

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
fn read_now(file: &File, buffer: &mut Buffer, part: FilePart) -> Result<Option<u32>> {
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

/// Reads parts, the last one first, as long as they are in the page cache and up to
/// [`DIRECT_READ`] bytes. What would have to wait stays in `parts`.
pub(super) fn read_cached(file: &File, buffer: &mut Buffer, parts: &mut Vec<FilePart>) -> Result<()> {
    let mut left = DIRECT_READ;
    while let Some(part) = parts.last().copied()
        && left > 0
    {
        let Some(n) = read_now(file, buffer, part.first(left))? else { break };
        left -= n;
        parts.pop();
        if n < part.span.len {
            parts.push(part.after(n));
        }
    }
    Ok(())
}

/// Reads parts, and waits for the disk.
pub(super) fn read_parts(file: &File, buffer: &mut Buffer, parts: &[FilePart]) -> Result<()> {
    let mut parts = parts.iter();
    parts.try_for_each(|part| buffer.fill_with(part.span, |bytes| read_all(file, bytes, part.offset)))
}

/// Fills all of `bytes`. Beyond the end of the file they are zero.
fn read_all(file: &File, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
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

/// `length` bytes from `offset` on, or fewer if the file ends before.
pub(super) fn read_up_to(file: &File, length: usize, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut got = 0;
    while got < length {
        match rustix::io::pread(file, &mut bytes[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(Raw::INTR) => {}
            Err(raw) => return Err(std::io::Error::from(raw).into()),
        }
    }
    bytes.truncate(got);
    Ok(bytes)
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
