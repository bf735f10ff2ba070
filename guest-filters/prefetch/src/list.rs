//! The list of ranges in the file: lines of one length, so that each is found by its number, and
//! people and scripts can read and write them.
//!
//! The first line says what the file is and which size the disk has. Each other line has the offset
//! and the length of a range in bytes, in decimal.

/// The length of a line with its end, in bytes.
pub const LINE: u64 = 32;

/// What the first line begins with. The size of the disk follows.
const TITLE: &str = "rbdkit prefetch";

/// The first line.
pub fn first_line(size: u64) -> String {
    format!("{TITLE} {size:>15}\n")
}

/// The size of the disk in a first line. None if it is none.
pub fn size_of_disk(line: &[u8]) -> Option<u64> {
    let line = whole(line)?;
    line.strip_prefix(TITLE)?.trim().parse().ok()
}

/// The line of a range.
pub fn line(offset: u64, length: u64) -> String {
    format!("{offset:>19} {length:>11}\n")
}

/// The range of a line: not empty, and without overflow. None if it is none.
pub fn range(line: &[u8]) -> Option<(u64, u64)> {
    let (offset, length) = whole(line)?.trim().split_once(' ')?;
    let (offset, length): (u64, u64) = (offset.parse().ok()?, length.trim().parse().ok()?);
    (length > 0 && offset.checked_add(length)? <= i64::MAX as u64).then_some((offset, length))
}

fn whole(line: &[u8]) -> Option<&str> {
    let line = line.strip_suffix(b"\n").filter(|rest| rest.len() as u64 == LINE - 1)?;
    std::str::from_utf8(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        for size in [0, 7, (1 << 49) - 1, 999_999_999_999_999] {
            assert_eq!(first_line(size).len() as u64, LINE);
            assert_eq!(size_of_disk(first_line(size).as_bytes()), Some(size));
        }
        for (offset, length) in [(0, 1), (4096, 32 << 20), (i64::MAX as u64 - 10, 10)] {
            assert_eq!(line(offset, length).len() as u64, LINE);
            assert_eq!(range(line(offset, length).as_bytes()), Some((offset, length)));
        }
    }

    #[test]
    fn other_lines_are_none() {
        for text in [
            "",
            "\n",
            "                  0           0\n",
            "                  0 99999999999",
            " 9223372036854775807           1\n",
            "99999999999999999999          1\n",
            "                  x           1\n",
            "                 -1           1\n",
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}1\n",
        ] {
            assert_eq!(range(text.as_bytes()), None, "{text:?}");
            assert_eq!(size_of_disk(text.as_bytes()), None, "{text:?}");
        }
    }
}
