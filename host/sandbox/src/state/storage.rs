//! A file that the operator named in a parameter and that is kept: an overlay, a cache or a bitmap
//! that is still there when the server starts again.
//!
//! One open file has the lock (`flock`), so a second server, or a second filter of this one, is
//! refused when it starts. Bytes go between the file and a buffer without a guest.
//!
//! **Limit.** The file may have a limited size ([`Storage::raise_limit`]). A file takes no more on
//! the disk than its size, so this bounds the disk as well, and checking it costs no system call.
//!
//! **Durability.** [`Storage::flush`] is `fdatasync`. When the system could not write pages, it
//! reports that once and then treats them as written. So after a failure every further flush fails.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cap_std::ambient_authority;
use cap_std::fs::{OpenOptions, OpenOptionsExt as _};
use rbdkit_plugin_api::{Buffer, Done, Errno, Error, Op, Result, Span, run_blocking, run_blocking_with};
use rustix::fs::{FlockOperation, OFlags};

use super::disk::{self, DirectWrites, FilePart};

/// The largest offset that a file can have.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// The most bytes that [`Storage::read`] and [`Storage::write`] move, by the contract.
pub const MAX_SMALL: u32 = 64 << 10;

/// Why a file cannot be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The system refuses it.
    Io(std::io::Error),
    /// It is a directory, a pipe, a device.
    NotRegular,
    /// Another server has it open, or another filter of this one.
    InUse,
}

impl From<std::io::Error> for OpenError {
    fn from(error: std::io::Error) -> OpenError {
        OpenError::Io(error)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Storage {
    file: File,
    /// The size that the file may have.
    limit: AtomicU64,
    direct_writes: DirectWrites,
    /// A flush has failed.
    failed: AtomicBool,
}

impl Storage {
    /// Opens the file, or makes it, and locks it. It may have the size that it has.
    pub(super) fn open(path: &Path) -> Result<Storage, OpenError> {
        let mut options = OpenOptions::new();
        // Only the user may read what filters keep of a disk. Without NONBLOCK, a device could
        // wait.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        options.read(true).write(true).create(true).mode(0o600).custom_flags(flags.bits() as i32);
        let file = cap_std::fs::File::open_ambient_with(path, &options, ambient_authority())?.into_std();
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(OpenError::NotRegular);
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse),
            Err(error) => return Err(OpenError::Io(error.into())),
        }
        if found.len() == 0 {
            // It may be new: its name must be as durable as what is flushed. A directory that
            // cannot be opened is only written, not read, by this user.
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let _ = File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
        }
        let limit = AtomicU64::new(found.len());
        Ok(Storage { file, limit, direct_writes: DirectWrites::default(), failed: AtomicBool::new(false) })
    }

    /// Lets it have at least `size` bytes.
    pub fn raise_limit(&self, size: u64) {
        self.limit.fetch_max(size, Ordering::Relaxed);
    }

    /// The size in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The bytes that it takes on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn allocated(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        // The unit of `st_blocks` on Linux.
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Whether a range may be written.
    fn check_growth(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if !fits(offset, length) {
            return Err(Errno::Einval);
        }
        match offset + length <= self.limit.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Errno::Enospc),
        }
    }

    /// Sets the size.
    ///
    /// # Errors
    /// EINVAL beyond 2^63 - 1, ENOSPC beyond the limit, and errors of the file system.
    pub fn resize(self: &Arc<Storage>, size: u64) -> Op<Result<()>> {
        if let Err(errno) = self.check_growth(0, size) {
            return Op::Ready(Err(errno.into()));
        }
        let storage = Arc::clone(self);
        run_blocking(move || Ok(storage.file.set_len(size)?))
    }

    /// Reads into `span` of the buffer. Bytes after the end of the file are zero.
    ///
    /// # Errors
    /// EINVAL for a span outside of the buffer or a range beyond 2^63 - 1. Errors of the file
    /// system.
    pub fn pread(self: &Arc<Storage>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) || !fits(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        let mut todo = Vec::new();
        if span.len > 0 {
            todo.push(FilePart { span, offset });
        }
        if let Err(error) = disk::read_cached(&self.file, &mut buffer, &mut todo) {
            return Op::Ready((buffer, Err(error)));
        }
        if todo.is_empty() {
            return Op::Ready((buffer, Ok(())));
        }
        let storage = Arc::clone(self);
        run_blocking_with(buffer, move |buffer| disk::read_parts(&storage.file, buffer, &todo))
    }

    /// Writes `span` of the buffer. Not durable.
    ///
    /// # Errors
    /// As [`Storage::pread`]. ENOSPC beyond the limit.
    pub fn pwrite(self: &Arc<Storage>, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if !buffer.contains(span) {
            return Op::Ready((buffer, Err(Errno::Einval.into())));
        }
        if let Err(errno) = self.check_growth(offset, u64::from(span.len)) {
            return Op::Ready((buffer, Err(errno.into())));
        }
        buffer.materialize(span);
        let write = || disk::write_all(&self.file, buffer.data(span), offset);
        if let Some(result) = self.direct_writes.make(span.len, write) {
            return Op::Ready((buffer, result));
        }
        let storage = Arc::clone(self);
        run_blocking_with(buffer, move |buffer| disk::write_all(&storage.file, buffer.data(span), offset))
    }

    /// At most `length` bytes from `offset` on, and at most [`MAX_SMALL`]. Fewer only at the end of
    /// the file.
    ///
    /// # Errors
    /// EINVAL for more than [`MAX_SMALL`] bytes or a range beyond 2^63 - 1. Errors of the file
    /// system.
    pub fn read(self: &Arc<Storage>, offset: u64, length: u32) -> Op<Result<Vec<u8>>> {
        if length > MAX_SMALL || !fits(offset, u64::from(length)) {
            return Op::Ready(Err(Errno::Einval.into()));
        }
        let storage = Arc::clone(self);
        run_blocking(move || disk::read_up_to(&storage.file, length as usize, offset))
    }

    /// Writes at most [`MAX_SMALL`] bytes. Not durable.
    ///
    /// # Errors
    /// As [`Storage::read`]. ENOSPC beyond the limit.
    pub fn write(self: &Arc<Storage>, offset: u64, data: Vec<u8>) -> Op<Result<()>> {
        let allowed = match data.len() > MAX_SMALL as usize {
            true => Err(Errno::Einval),
            false => self.check_growth(offset, data.len() as u64),
        };
        if let Err(errno) = allowed {
            return Op::Ready(Err(errno.into()));
        }
        let storage = Arc::clone(self);
        run_blocking(move || disk::write_all(&storage.file, &data, offset))
    }

    /// Frees a range, which then reads as zero. The size stays.
    ///
    /// # Errors
    /// EINVAL for a range beyond 2^63 - 1. Errors of the file system: the range is then unchanged,
    /// or zero in parts.
    pub fn punch(self: &Arc<Storage>, offset: u64, length: u64) -> Op<Result<()>> {
        if !fits(offset, length) {
            return Op::Ready(Err(Errno::Einval.into()));
        }
        let storage = Arc::clone(self);
        run_blocking(move || {
            let end = (offset + length).min(storage.size()?);
            if offset < end { disk::erase(&storage.file, offset, end) } else { Ok(()) }
        })
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// Those of the file system. Always, once it has failed.
    pub fn flush(self: &Arc<Storage>) -> Op<Result<()>> {
        let storage = Arc::clone(self);
        run_blocking(move || {
            if storage.failed.load(Ordering::Acquire) {
                return Err(Error::new(Errno::Eio, "an earlier flush of the file failed, so data may be lost"));
            }
            storage.file.sync_data().inspect_err(|_| storage.failed.store(true, Ordering::Release))?;
            Ok(())
        })
    }
}

/// Whether a range ends at or before the largest offset of a file.
fn fits(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= MAX_OFFSET)
}

#[cfg(test)]
mod tests;
