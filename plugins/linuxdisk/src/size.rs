//! How large the file system is.

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
    fn the_last_line_of_du_counts() {
        assert_eq!(total(b"12\t/a b\n34\t/c\n46\ttotal\n"), Some(46 << 10));
        assert_eq!(total(b""), None);
        assert_eq!(total(b"x total\n"), None);
        assert_eq!(total(b"18446744073709551615 total\n"), None);
    }
}
