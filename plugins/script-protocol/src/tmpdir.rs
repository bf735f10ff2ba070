//! The directory that scripts keep their state in: `$tmpdir`.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rbdkit_plugin_api::temporary;
use tempfile::TempDir;

/// An empty directory of a random name that only this user can enter. It is removed with the value.
#[derive(Debug)]
pub(crate) struct ScriptDir(TempDir);

impl ScriptDir {
    /// Makes one under `$TMPDIR`, by default `/tmp`.
    pub(crate) fn new() -> io::Result<ScriptDir> {
        let private = Permissions::from_mode(0o700);
        let parent = temporary::directory()?;
        tempfile::Builder::new().prefix("rbdkit").permissions(private).tempdir_in(parent).map(ScriptDir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a program into it that its owner may read and execute.
    pub(crate) fn add_script(&self, name: &str, text: &[u8]) -> io::Result<PathBuf> {
        let path = self.path().join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o500).open(&path)?;
        file.write_all(text)?;
        Ok(path)
    }

    /// Removes the directory and what is in it.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(self.path())
    }
}
