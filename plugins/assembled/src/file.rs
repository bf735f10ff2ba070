//! The system calls on one file of a disk: a regular file or a block device.
//!
//! What the file system does not support (holes, `fallocate`) is tried once and not again.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_plugin_api::{ConfigError, Errno, Error, Extents, Param, Result};
use rustix::fs::{Advice, CWD, FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::{Errno as Raw, ReadWriteFlags};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading, and not what a symbolic link leads to.
    ReadNoLink,
    /// Reading and writing, or only reading if writing is not permitted.
    WriteIfPermitted,
}

/// An open file or block device.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    size: u64,
    writable: bool,
    /// Whether the file can say where it has holes.
    finds_holes: bool,
    /// Whether fallocate(2) works.
    allocates: AtomicBool,
    reads_now: AtomicBool,
}

impl DiskFile {
    /// Opens a file by its name.
    ///
    /// # Errors
    /// Those of open(2); EINVAL if it is neither a regular file nor a block device.
    pub fn open(path: &Path, access: Access) -> std::io::Result<DiskFile> {
        // Opening a named pipe must not wait for a writer. A regular file ignores the flag.
        let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let flags = if access == Access::ReadNoLink { flags | OFlags::NOFOLLOW } else { flags };
        let open = |more| rustix::fs::openat(CWD, path, flags | more, Mode::empty());
        let writable = match access {
            Access::Read | Access::ReadNoLink => None,
            Access::WriteIfPermitted => match open(OFlags::RDWR) {
                Ok(fd) => Some(fd),
                Err(Raw::ACCESS | Raw::PERM | Raw::ROFS | Raw::TXTBSY) => None,
                Err(error) => return Err(error.into()),
            },
        };
        match writable {
            Some(fd) => DiskFile::new(fd, Writable::Yes),
            None => DiskFile::new(open(OFlags::RDONLY)?, Writable::No),
        }
    }

    /// Opens the file that a parameter names.
    ///
    /// # Errors
    /// One line that names the parameter.
    pub fn of_param(param: Param<'_>, access: Access) -> Result<DiskFile, ConfigError> {
        DiskFile::open(param.path(), access).map_err(|error| param.error(error))
    }

    /// A file that is open already. Whether it can be written follows from how it was opened.
    ///
    /// # Errors
    /// Those of the system; EINVAL if it is neither a regular file nor a block device.
    pub fn from_fd(fd: OwnedFd) -> std::io::Result<DiskFile> {
        let mode = rustix::fs::fcntl_getfl(&fd)? & OFlags::RWMODE;
        let writable = if mode == OFlags::RDWR { Writable::Yes } else { Writable::No };
        DiskFile::new(fd, writable)
    }

    fn new(fd: OwnedFd, writable: Writable) -> std::io::Result<DiskFile> {
        let stat = rustix::fs::fstat(&fd)?;
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
            FileType::BlockDevice => rustix::fs::seek(&fd, SeekFrom::End(0))?,
            _ => {
                let what = "it is neither a regular file nor a block device";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
            }
        };
        let finds_holes = matches!(rustix::fs::seek(&fd, SeekFrom::Data(0)), Ok(_) | Err(Raw::NXIO));
        Ok(DiskFile {
            file: fd.into(),
            size,
            writable: writable == Writable::Yes,
            finds_holes,
            allocates: AtomicBool::new(true),
            reads_now: AtomicBool::new(true),
        })
    }

    /// The size when it was opened, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` if the page cache has them. Does not wait.
    pub(crate) fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        if !self.reads_now.load(Ordering::Relaxed) {
            return false;
        }
        let length = bytes.len();
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == length,
            Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::INVAL) => {
                self.reads_now.store(false, Ordering::Relaxed);
                false
            }
            Err(_) => false,
        }
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// EIO at the end of the file: it has become smaller since it was opened.
    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|error| match Raw::from_io_error(&error) {
            Some(error) => failed("pread", error),
            None => Error::new(Errno::Eio, "pread: unexpected end of file"),
        })
    }

    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| match Raw::from_io_error(&error) {
            Some(error) => failed("pwrite", error),
            None => Error::new(Errno::Eio, "pwrite: nothing could be written"),
        })
    }

    pub(crate) fn sync(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.file)).map_err(|error| failed("fdatasync", error))
    }

    /// Makes a hole. Returns false, and does nothing, if the file system cannot.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> Result<bool> {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
    }

    /// Makes a range zero that stays allocated. Returns false, and does nothing, if the file system
    /// cannot.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> Result<bool> {
        self.allocate(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> Result<bool> {
        if !self.allocates.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, mode, offset, length)) {
            Ok(()) => Ok(true),
            // A block device refuses ranges that are not whole blocks with EINVAL.
            Err(Raw::INVAL) => Ok(false),
            Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::NODEV) => {
                // The other mode may work, on tmpfs for example; it is tried again then.
                if mode.contains(FallocateFlags::PUNCH_HOLE) {
                    self.allocates.store(false, Ordering::Relaxed);
                }
                Ok(false)
            }
            Err(error) => Err(failed("fallocate", error)),
        }
    }

    /// Asks the kernel to read ahead. Only advice, so errors do not matter.
    pub(crate) fn advise(&self, offset: u64, length: u64) {
        let _ = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(length), Advice::WillNeed);
    }

    /// Adds the extents of a range of the file. Returns false once there is no more room.
    pub(crate) fn extents(&self, offset: u64, length: u64, extents: &mut Extents) -> Result<bool> {
        if !self.finds_holes {
            return Ok(extents.push(length, false, false));
        }
        let (mut at, end) = (offset, offset + length);
        let seek = |whence, otherwise| match rustix::fs::seek(&self.file, whence) {
            Ok(found) => Ok(found.clamp(offset, end)),
            Err(Raw::NXIO) => Ok(otherwise),
            Err(error) => Err(failed("lseek", error)),
        };
        while at < end {
            let data = seek(SeekFrom::Data(at), end)?.max(at);
            if !extents.push(data - at, true, true) {
                return Ok(false);
            }
            at = data;
            if at < end {
                let hole = seek(SeekFrom::Hole(at), end)?;
                // Another process changes the file. Saying that the rest is data is always right.
                let hole = if hole <= at { end } else { hole };
                if !extents.push(hole - at, false, false) {
                    return Ok(false);
                }
                at = hole;
            }
        }
        Ok(true)
    }
}

/// Whether a descriptor can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writable {
    Yes,
    No,
}

fn failed(what: &str, error: Raw) -> Error {
    Error::new(Errno::from_raw(error.raw_os_error()), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_be_written_is_opened_for_reading() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [7; 1000]).unwrap();
        let file = DiskFile::open(&path, Access::WriteIfPermitted).unwrap();
        assert!(file.is_writable() && file.size() == 1000);
        assert!(!DiskFile::open(&path, Access::Read).unwrap().is_writable());
        assert!(DiskFile::from_fd(file.file().try_clone().unwrap().into()).unwrap().is_writable());
        // Of a program that runs.
        let own = std::env::current_exe().unwrap();
        assert!(!DiskFile::open(&own, Access::WriteIfPermitted).unwrap().is_writable());
    }

    #[test]
    fn only_files_and_block_devices_are_disks_and_a_pipe_does_not_hang() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/null")] {
            let error = DiskFile::open(path, Access::Read).unwrap_err();
            assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
        }
        assert!(DiskFile::open(&directory.path().join("none"), Access::Read).is_err());
    }

    #[test]
    fn a_file_that_has_become_smaller_is_an_error() {
        let file = crate::temporary_file().unwrap();
        file.set_len(8192).unwrap();
        let disk = DiskFile::from_fd(file.try_clone().unwrap().into()).unwrap();
        file.set_len(4096).unwrap();
        let error = disk.read(&mut [0; 8192], 0).unwrap_err();
        assert_eq!(error.context(), Some("pread: unexpected end of file"));
        assert!(!disk.read_now(&mut [0; 8192], 0));
    }
}
