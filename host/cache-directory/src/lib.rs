//! The private directory in which compiled code and pulled components are kept.
//!
//! The directory must be private: owned by our user, mode 0700, and not a symbolic link. It is
//! opened once, the open descriptor is checked, and every file is opened relative to that
//! descriptor. So later changes of the path have no effect: no file of another directory is ever
//! used.
//!
//! A file is never changed in place. A new file is written without a name and then replaces the old
//! one, so a reader sees either the whole old file or the whole new one.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cap_std::fs::{Dir, File, MetadataExt as _, OpenOptions, OpenOptionsExt as _, Permissions, PermissionsExt as _};
use cap_tempfile::TempFile;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The most bytes that the directory keeps. Beyond that, the oldest files are removed first. There
/// is room for the filters of this tree (some MB) and for a dozen interpreters (60 to 90 MB each).
const MAX_CACHE_BYTES: u64 = 1 << 30;

/// The name of the file with the key that seals compiled code. It is never removed to make room.
pub const KEY_FILE: &str = "key";

/// Where the directory is unless the caller chooses another: `rbdkit` in `$XDG_CACHE_HOME`, in
/// `/var/cache` for root, or in `~/.cache`. None if the environment names no home.
pub fn default_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = absolute("XDG_CACHE_HOME") {
        return Some(path.join("rbdkit"));
    }
    if geteuid().is_root() {
        return Some("/var/cache/rbdkit".into());
    }
    absolute("HOME").map(|home| home.join(".cache/rbdkit"))
}

/// Why a directory cannot hold the cache.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is a file, or a symbolic link.
    #[error("it is not a directory")]
    NotDirectory,
    /// Another user owns it.
    #[error("it belongs to somebody else")]
    ForeignOwner,
    /// Its mode gives others access.
    #[error("others may use it (its mode has to be 0700)")]
    OpenToOthers,
    /// The file system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A file in the directory.
pub struct CacheFile {
    /// Its name in the directory.
    pub name: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// The directory, open.
pub struct CacheDirectory {
    dir: Dir,
    /// For messages.
    path: PathBuf,
}

impl CacheDirectory {
    /// Opens the directory. Creates it if it does not exist.
    ///
    /// # Errors
    /// It cannot be created or opened, or is not private.
    pub fn open(path: &Path) -> Result<CacheDirectory, DirectoryError> {
        // Without a slash at the end, because a slash would make the system follow a link.
        let path: PathBuf = path.components().collect();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(DirectoryError::NotDirectory),
            opened => opened.map_err(io::Error::from)?,
        };
        let dir = Dir::from_std_file(descriptor.into());
        let metadata = dir.dir_metadata()?;
        if metadata.uid() != geteuid().as_raw() {
            return Err(DirectoryError::ForeignOwner);
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(DirectoryError::OpenToOthers);
        }
        Ok(CacheDirectory { dir, path })
    }

    /// The directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// There is none, it is not a regular file, or other users own it or may write to it.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        // With O_NONBLOCK, opening a pipe does not wait.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = self.dir.open_with(name, OpenOptions::new().read(true).custom_flags(flags))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other("others may write to it"));
        }
        Ok(file)
    }

    /// Reads a file, at most `limit` bytes of it.
    ///
    /// # Errors
    /// Those of [`CacheDirectory::open_file`], and those of reading.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a new file, which replaces any file of that name.
    ///
    /// # Errors
    /// Those of the file system. There is no new file then.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = TempFile::new(&self.dir)?;
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.replace(name)
    }

    /// All files of the directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn entries(&self) -> io::Result<Vec<CacheFile>> {
        let mut entries = Vec::new();
        for entry in self.dir.entries()?.flatten() {
            let metadata = entry.metadata()?;
            let modified = metadata.modified()?.into_std();
            entries.push(CacheFile { name: entry.file_name().into(), size: metadata.len(), modified });
        }
        Ok(entries)
    }

    /// Removes the oldest files until there is room for `more` bytes within [`MAX_CACHE_BYTES`].
    /// The key stays.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn make_room(&self, more: u64) -> io::Result<()> {
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.name.as_os_str() != KEY_FILE);
        entries.sort_by_key(|entry| entry.modified);
        let mut total = entries.iter().map(|entry| entry.size).sum::<u64>().saturating_add(more);
        for entry in entries {
            if total <= MAX_CACHE_BYTES {
                break;
            }
            let _ = self.remove(&entry.name);
            total -= entry.size;
        }
        Ok(())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, name: &Path) -> io::Result<()> {
        self.dir.remove_file(name)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn why_not(path: &Path) -> String {
        CacheDirectory::open(path).err().unwrap().to_string()
    }

    #[test]
    fn a_directory_that_others_may_use_is_not_used() {
        let directory = TempDir::new().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(why_not(&open), "others may use it (its mode has to be 0700)");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert_eq!(why_not(&link), "it is not a directory");
        assert_eq!(why_not(&link.join("")), "it is not a directory");
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        assert_eq!(why_not(&file), "it is not a directory");
        assert!(CacheDirectory::open(Path::new("/proc/nowhere")).is_err());
    }

    #[test]
    fn a_directory_that_replaces_the_opened_one_is_not_used() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("code");
        let opened = CacheDirectory::open(&path).unwrap();
        opened.replace("one", b"ours").unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("one"), b"theirs").unwrap();
        assert_eq!(opened.read("one", 100).unwrap(), b"ours");
        opened.replace("two", b"ours").unwrap();
        assert!(!path.join("two").exists());
    }

    #[test]
    fn a_file_that_others_may_write_to_is_not_read() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("code");
        let opened = CacheDirectory::open(&path).unwrap();
        opened.replace("one", b"ours").unwrap();
        assert_eq!(opened.read("one", 3).unwrap(), b"our");
        fs::set_permissions(path.join("one"), std::os::unix::fs::PermissionsExt::from_mode(0o622)).unwrap();
        assert_eq!(opened.read("one", 3).unwrap_err().to_string(), "others may write to it");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "no temporary file is left");
    }
}
