//! A file that this process made, and that it removes only if nobody has put another in its place.
//!
//! The file and its directory stay open. So a path that changes later has no effect, and the inode
//! number of the file is not given to another one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, unlinkat};

/// See the module.
#[derive(Debug)]
pub struct OwnFile {
    directory: OwnedFd,
    name: OsString,
    file: OwnedFd,
}

impl OwnFile {
    /// `file` was made as `name` in the directory.
    pub fn new(directory: OwnedFd, name: OsString, file: OwnedFd) -> OwnFile {
        OwnFile { directory, name, file }
    }

    /// The file that was just made at this path.
    ///
    /// # Errors
    /// It is gone already.
    pub fn at(path: &Path) -> io::Result<OwnFile> {
        let (directory, name) = directory_of(path)?;
        let file = look(&directory, &name)?;
        Ok(OwnFile { directory, name, file })
    }

    /// Removes the file if it is still there. If it cannot be removed, it stays.
    pub fn remove(&self) {
        let same = |now: &OwnedFd| Ok::<_, io::Error>(is_same(&fstat(now)?, &fstat(&self.file)?));
        if look(&self.directory, &self.name).and_then(|now| same(&now)).unwrap_or(false) {
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

/// Opens the directory of a path, to use the file in it by its name.
///
/// # Errors
/// There is no such directory, or the path ends with `..`.
pub fn directory_of(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((openat(CWD, directory, flags, Mode::empty())?, name.to_os_string()))
}

/// Refers to the file of this name, without following a symbolic link and without opening it.
///
/// # Errors
/// As openat(2).
pub fn look(directory: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether both are of the same file.
pub fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_removed_only_while_it_is_the_one_that_was_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "ours").unwrap();
        OwnFile::at(&path).unwrap().remove();
        assert!(!path.exists());

        std::fs::write(&path, "ours").unwrap();
        let own = OwnFile::at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        own.remove();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another");
    }

    #[test]
    fn a_directory_that_takes_the_place_of_its_own_keeps_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let (first, moved) = (directory.path().join("first"), directory.path().join("moved"));
        std::fs::create_dir(&first).unwrap();
        std::fs::write(first.join("file"), "ours").unwrap();
        let own = OwnFile::at(&first.join("file")).unwrap();
        std::fs::rename(&first, &moved).unwrap();
        std::fs::create_dir(&first).unwrap();
        std::fs::write(first.join("file"), "another").unwrap();
        own.remove();
        assert!(first.join("file").exists() && !moved.join("file").exists());
    }
}
