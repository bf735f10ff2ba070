//! How large the file system is, and how many files it has room for.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rbdkit_assembled::SECTOR;
use rbdkit_plugin_api::{ConfigError, Param, units};

/// The parameter `size=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// So many bytes.
    Exactly(u64),
    /// As large as the files need, and so many bytes more.
    Needed { more: u64 },
}

/// The smallest file system, in bytes.
const MIN_SIZE: u64 = 1 << 20;

/// What ext3 and ext4 need for their journal, in bytes.
const JOURNAL: u64 = 32 << 20;

impl Size {
    /// Reads `SIZE` or `+SIZE`.
    pub(crate) fn parse(param: Param<'_>) -> Result<Size, ConfigError> {
        let text = param.text()?;
        let read = |text| units::parse_size(text).map_err(|wrong| param.error(wrong));
        match text.strip_prefix('+') {
            Some(more) => Ok(Size::Needed { more: read(more)? }),
            None => match read(text)? {
                0 => Ok(Size::Needed { more: 0 }),
                size => Ok(Size::Exactly(size)),
            },
        }
    }
}

/// What the files of a directory need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Files, directories and all else that has an inode.
    pub(crate) inodes: u64,
}

/// The size of a block in bytes, and of an inode, at most.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;

/// Inodes that every file system has for itself.
const RESERVED_INODES: u64 = 16;

/// Counts what is in a directory. Some file systems keep small files without a block of their own,
/// so du counts nothing for them. Here each takes a block. What cannot be read is left out: mke2fs
/// reports it.
pub(crate) fn count(directory: &Path) -> Needs {
    let mut needs = Needs { bytes: 0, inodes: RESERVED_INODES };
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let bytes = metadata.blocks().saturating_mul(512).max(BLOCK).saturating_add(INODE);
            needs.bytes = needs.bytes.saturating_add(bytes);
            needs.inodes += 1;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    needs
}

/// The number of inodes to ask mke2fs for, if its own choice would be too small. None: it would
/// not. mke2fs makes one for each 4 KiB of a file system below 512 MiB, and for each 16 KiB of a
/// larger one.
pub(crate) fn inodes(size: u64, needed: u64) -> Option<u64> {
    let usual = if size < 512 << 20 { size / 4096 } else { size / 16384 };
    // A little more, because a file system with a journal needs some for itself.
    let wanted = needed.saturating_add(needed / 16);
    (wanted > usual).then_some(wanted)
}

/// The size of a file system for files that take so many bytes: a fifth more for its own data, and
/// room for the journal. None: there is no such number.
pub(crate) fn with_overhead(files: u64, kind: &str, more: u64) -> Option<u64> {
    let has_journal = kind.as_bytes().get(3).is_some_and(|digit| *digit > b'2');
    let size = files.checked_mul(6)? / 5;
    let size = size.max(MIN_SIZE).checked_add(if has_journal { JOURNAL } else { 0 })?;
    whole_sectors(size.checked_add(more)?)
}

/// Rounded up to whole sectors.
pub(crate) fn whole_sectors(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(SECTOR)
}

/// The sum in the last line that `du -c -k` prints, in bytes.
pub(crate) fn total(output: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(output);
    let number = text.lines().next_back()?.split_ascii_whitespace().next()?;
    number.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Size, String> {
        Size::parse(Param { key: "size", value: text.as_ref() }).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plus_is_for_free_space() {
        assert_eq!(parse("1G"), Ok(Size::Exactly(1 << 30)));
        assert_eq!(parse("+1G"), Ok(Size::Needed { more: 1 << 30 }));
        assert_eq!(parse("0"), Ok(Size::Needed { more: 0 }));
        assert!(parse("+x").unwrap_err().starts_with("size=+x: is not a size"));
    }

    #[test]
    fn there_is_room_for_the_file_systems_own_data() {
        assert_eq!(with_overhead(0, "ext2", 0), Some(1 << 20));
        assert_eq!(with_overhead(10 << 20, "ext2", 0), Some(12 << 20));
        assert_eq!(with_overhead(0, "ext4", 0), Some(33 << 20));
        assert_eq!(with_overhead(0, "ext3", 1), Some((33 << 20) + 512));
        assert_eq!(with_overhead(u64::MAX / 2, "ext2", 0), None);
        assert_eq!(with_overhead(1 << 20, "ext2", u64::MAX), None);
    }

    #[test]
    fn small_files_and_their_inodes_count() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        for number in 0..10 {
            std::fs::write(directory.path().join("sub").join(number.to_string()), "x").unwrap();
        }
        let needs = count(directory.path());
        assert_eq!(needs.inodes, RESERVED_INODES + 11);
        assert!(needs.bytes >= 11 * (BLOCK + INODE));
        assert_eq!(count(Path::new("/no/such")), Needs { bytes: 0, inodes: RESERVED_INODES });
        assert_eq!((inodes(1 << 20, 200), inodes(1 << 20, 320)), (None, Some(340)));
        assert_eq!((inodes(1 << 30, 60_000), inodes(1 << 30, 64_000)), (None, Some(68_000)));
    }

    #[test]
    fn the_last_line_of_du_counts() {
        assert_eq!(total(b"12\t/a b\n34\t/c\n46\ttotal\n"), Some(46 << 10));
        assert_eq!(total(b""), None);
        assert_eq!(total(b"x total\n"), None);
        assert_eq!(total(b"18446744073709551615 total\n"), None);
    }
}
