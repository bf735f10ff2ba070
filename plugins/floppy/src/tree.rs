//! The files and directories that go onto the disk.
//!
//! Symbolic links, devices, pipes and sockets are left out, as nbdkit leaves them out.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// When something was created, changed and read, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) accessed: i64,
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) size: u32,
    pub(crate) times: Times,
}

/// A directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Empty for the root.
    pub(crate) name: String,
    /// The number of the directory above. The root is its own.
    pub(crate) parent: usize,
    pub(crate) times: Times,
    /// The numbers of the directories in it.
    pub(crate) directories: Vec<usize>,
    /// The numbers of the files in it.
    pub(crate) files: Vec<usize>,
}

/// All of them. The root is the directory 0.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) directories: Vec<Directory>,
    pub(crate) files: Vec<File>,
}

impl Times {
    fn of(metadata: &Metadata) -> Times {
        Times { created: metadata.ctime(), modified: metadata.mtime(), accessed: metadata.atime() }
    }
}

/// Reads a directory and those in it. Names are in ascending order, so the same directory gives the
/// same disk.
///
/// # Errors
/// One line that names the file or directory.
pub(crate) fn read(root: &Path) -> Result<Tree, String> {
    let of_root = Directory {
        name: String::new(),
        parent: 0,
        times: Times::default(),
        directories: Vec::new(),
        files: Vec::new(),
    };
    let mut tree = Tree { directories: vec![of_root], files: Vec::new() };
    let mut paths = vec![root.to_path_buf()];
    // Directories are added at the end while they are read, so the list needs no stack.
    let mut number = 0;
    while let Some(path) = paths.get(number).cloned() {
        for (name, path, metadata) in entries(&path)? {
            let times = Times::of(&metadata);
            if metadata.is_dir() {
                let own = tree.directories.len();
                tree.directories.push(Directory {
                    name,
                    parent: number,
                    times,
                    directories: Vec::new(),
                    files: Vec::new(),
                });
                tree.directories[number].directories.push(own);
                paths.push(path);
            } else if metadata.is_file() {
                let size = u32::try_from(metadata.len()).ok().filter(|size| *size < u32::MAX);
                let too_large = || format!("{}: file is larger than maximum supported by VFAT", path.display());
                let size = size.ok_or_else(too_large)?;
                let own = tree.files.len();
                tree.files.push(File { name, path, size, times });
                tree.directories[number].files.push(own);
            }
        }
        number += 1;
    }
    Ok(tree)
}

type Entry = (String, PathBuf, Metadata);

fn entries(directory: &Path) -> Result<Vec<Entry>, String> {
    let at = |path: &Path, what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| at(directory, &error))? {
        let entry = entry.map_err(|error| at(directory, &error))?;
        let path = entry.path();
        // Does not follow symbolic links.
        let metadata = entry.metadata().map_err(|error| at(&path, &error))?;
        if metadata.is_dir() || metadata.is_file() {
            let name = entry.file_name().into_string();
            let name = name.map_err(|_| at(&path, &"the name is not UTF-8, so FAT cannot have it"))?;
            entries.push((name, path, metadata));
        }
    }
    entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn files_and_directories_are_found_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("b/c")).unwrap();
        for name in ["z", "a", "b/c/deep"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        std::os::unix::fs::symlink("/etc", at("b/etc")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let tree = read(root.path()).unwrap();
        let names: Vec<_> = tree.files.iter().map(|file| (&file.name[..], file.size)).collect();
        assert_eq!(names, [("a", 1), ("z", 1), ("deep", 8)]);
        let directories: Vec<_> = tree.directories.iter().map(|one| (&one.name[..], one.parent)).collect();
        assert_eq!(directories, [("", 0), ("b", 0), ("c", 1)]);
        assert_eq!(tree.directories[0].directories, [1]);
        assert_eq!(tree.directories[2].files, [2]);
    }

    #[test]
    fn what_fat_cannot_have_is_named() {
        let root = tempfile::tempdir().unwrap();
        let large = root.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(u32::MAX.into()).unwrap();
        assert_eq!(
            read(root.path()).unwrap_err(),
            format!("{}: file is larger than maximum supported by VFAT", large.display())
        );
        std::fs::remove_file(large).unwrap();
        std::fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"a\xff")), "").unwrap();
        assert!(read(root.path()).unwrap_err().ends_with("the name is not UTF-8, so FAT cannot have it"));
        assert!(read(&root.path().join("none")).unwrap_err().contains("No such file"));
    }
}
