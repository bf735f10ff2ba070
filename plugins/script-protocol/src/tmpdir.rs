//! The directory that scripts keep their state in: `$tmpdir`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{env, fs, io::Write};

/// An empty directory of a random name, for this user alone. It goes when this value goes.
#[derive(Debug)]
pub(crate) struct TmpDir(PathBuf);

impl TmpDir {
    /// Makes one under `$TMPDIR`, by default `/tmp`.
    pub(crate) fn new() -> io::Result<TmpDir> {
        let parent = env::temp_dir();
        loop {
            // The hasher's keys are from the system's random numbers; a name that is taken is not an attack but a reason to try again.
            let path = parent.join(format!("rbdkit{:016x}", RandomState::new().build_hasher().finish()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(TmpDir(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a program into it that its owner may read and execute.
    pub(crate) fn add_script(&self, name: &str, text: &[u8]) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o500).open(&path)?;
        file.write_all(text)?;
        Ok(path)
    }

    /// Removes it and what is in it, as far as that is possible.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        self.remove();
    }
}
