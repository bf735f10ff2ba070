//! Where private temporary directories are made.
//!
//! A program that runs as root may have the environment of another user (`sudo -E`). If that user
//! owns `$TMPDIR` or a directory above it, he can put a directory of his own in the place of a
//! private one, between its creation and its use, and the server would run his scripts.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The owner that the kernel shows for users that do not exist in a container. The directories of a
/// container's host have it.
const NOBODY: u32 = 65534;

/// `$TMPDIR`, or `/tmp`: the directory in which to make a private one. The path has no symbolic
/// links.
///
/// # Errors
/// The directory, or one above it, belongs to another user, or does not exist.
pub fn directory() -> io::Result<PathBuf> {
    own(&std::env::temp_dir())
}

/// `$TMPDIR`, or `/var/tmp`: the directory in which to make a large file, as [`directory`].
///
/// # Errors
/// Those of [`directory`].
pub fn large_directory() -> io::Result<PathBuf> {
    own(&std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from))
}

fn own(directory: &Path) -> io::Result<PathBuf> {
    let checked = checked(directory, rustix::process::geteuid().as_raw());
    checked.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
}

fn checked(directory: &Path, user: u32) -> io::Result<PathBuf> {
    let directory = directory.canonicalize()?;
    for above in directory.ancestors() {
        let owner = above.symlink_metadata()?.uid();
        if ![0, user, NOBODY].contains(&owner) {
            return Err(io::Error::other(format!(
                "{} belongs to user {owner}, who could exchange private files in it (set TMPDIR to another directory)",
                above.display()
            )));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_another_user_could_exchange_is_refused() {
        let directory = directory().unwrap();
        assert!(directory.is_absolute());
        let own = directory.join(format!("rbdkit-temporary-{}", std::process::id()));
        let inner = own.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        let owner = std::fs::metadata(&inner).unwrap().uid();
        assert_eq!(checked(&inner, owner).unwrap(), inner);
        if owner == 0 {
            // The directory above belongs to another user.
            std::os::unix::fs::chown(&own, Some(1234), None).unwrap();
            assert_eq!(checked(&inner, 1234).unwrap(), inner);
            let error = checked(&inner, 0).unwrap_err().to_string();
            assert!(error.contains(" belongs to user 1234, who could exchange"), "{error}");
        }
        assert!(checked(&inner.join("none"), owner).is_err());
        std::fs::remove_dir_all(own).unwrap();
    }
}
