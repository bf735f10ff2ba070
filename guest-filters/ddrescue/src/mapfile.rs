//! The mapfile of GNU ddrescue.

use rbdkit_filter_shared::lines::LineReader;
use rbdkit_filter_shared::segments::{Segment, Segments};

/// The most areas that a mapfile may have. Each instance of the filter has a copy of 24 bytes for
/// each area.
pub const MAX_AREAS: usize = 1_000_000;

/// An area: whether it was rescued, and the number of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The status is `+`.
    pub rescued: bool,
    line: u32,
}

/// Collects the lines of a mapfile.
#[derive(Default)]
pub struct Reader {
    /// The status line, the first one that is not a comment, has come.
    begun: bool,
    areas: Vec<Segment<Area>>,
}

/// A number as C writes it: decimal, hexadecimal after `0x`, octal after `0`.
fn parse_position(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text {
        hex if hex.starts_with("0x") || hex.starts_with("0X") => (&hex[2..], 16),
        octal if octal.len() > 1 && octal.starts_with('0') => (&octal[1..], 8),
        decimal => (decimal, 10),
    };
    let number = if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, radix).ok() };
    number.ok_or_else(|| format!("'{text}' is not a number"))
}

impl LineReader for Reader {
    type List = Segments<Area>;

    /// Takes the next line.
    ///
    /// # Errors
    /// What is wrong with the line.
    fn line(&mut self, number: u64, text: &str) -> Result<(), String> {
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        if !self.begun {
            let (position, status) = match words[..] {
                [position, status] => (position, status),
                [position, status, pass] => {
                    parse_position(pass)?;
                    (position, status)
                }
                _ => return Err(format!("'{text}' is not the status line, POSITION STATUS [PASS]")),
            };
            parse_position(position)?;
            if !matches!(status, "?" | "*" | "/" | "-" | "F" | "G" | "+") {
                return Err(format!("'{status}' is not a status of ddrescue: one of ? * / - F G +"));
            }
            self.begun = true;
            return Ok(());
        }
        let [position, size, status] = words[..] else {
            return Err(format!("'{text}' is not an area, POSITION SIZE STATUS"));
        };
        let start = parse_position(position)?;
        let end = start.checked_add(parse_position(size)?).ok_or("ends beyond every disk")?;
        if !matches!(status, "?" | "*" | "/" | "-" | "+") {
            return Err(format!("'{status}' is not the status of an area: one of ? * / - +"));
        }
        if self.areas.len() == MAX_AREAS {
            return Err(format!("the mapfile has more than {MAX_AREAS} areas"));
        }
        self.areas.push(Segment { start, end, value: Area { rescued: status == "+", line: number as u32 } });
        Ok(())
    }

    /// Sorts the areas.
    ///
    /// # Errors
    /// There is no status line, or two areas overlap.
    fn finish(self) -> Result<Segments<Area>, String> {
        if !self.begun {
            return Err("the file has no status line: it is not a mapfile of ddrescue".into());
        }
        Segments::new(self.areas).map_err(|(a, b)| {
            let (first, second) = (a.value.line.min(b.value.line), a.value.line.max(b.value.line));
            format!("line {second}: overlaps the area of line {first}")
        })
    }
}

/// The first part of a request that was not rescued: offset and length. What the mapfile does not
/// describe was not rescued.
pub fn first_bad(areas: &Segments<Area>, offset: u64, length: u64) -> Option<(u64, u64)> {
    let is_bad = |segment: Option<Segment<Area>>| segment.is_none_or(|segment| !segment.value.rescued);
    areas.pieces(offset, length).find(|piece| is_bad(piece.segment)).map(|piece| (piece.offset, piece.length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Segments<Area>, String> {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(text.lines()) {
            reader.line(number, line.trim()).map_err(|wrong| format!("line {number}: {wrong}"))?;
        }
        reader.finish()
    }

    #[test]
    fn only_what_was_rescued_is_good() {
        let areas = read(
            "# Mapfile. Created by GNU ddrescue version 1.27\n# current_pos  current_status  current_pass\n\
             0x00000600     +               1\n#      pos        size  status\n\
             0x00000000  0x00000200  +\n0x00000200  0x00000200  -\n1024 512 +\n0x600 0x200 ?\n0x800 01000 +\n",
        )
        .unwrap();
        assert_eq!(first_bad(&areas, 0, 512), None);
        assert_eq!(first_bad(&areas, 0, 513), Some((512, 1)));
        assert_eq!(first_bad(&areas, 700, 1000), Some((700, 324)));
        assert_eq!(first_bad(&areas, 1024, 512), None);
        assert_eq!(first_bad(&areas, 1024, 513), Some((1536, 1)));
        assert_eq!(first_bad(&areas, 2048, 512), None);
        assert_eq!(first_bad(&areas, 2048, 513), Some((2560, 1)), "not described");
        assert_eq!(first_bad(&read("0 +").unwrap(), 0, 1), Some((0, 1)));
    }

    #[test]
    fn areas_that_touch_are_read_as_one() {
        assert_eq!(first_bad(&read("0 + 1\n0 512 +\n512 512 +").unwrap(), 100, 800), None);
    }

    #[test]
    fn a_wrong_line_is_named_with_its_number() {
        for (text, wrong) in [
            ("", "the file has no status line: it is not a mapfile of ddrescue"),
            ("# only\n", "the file has no status line: it is not a mapfile of ddrescue"),
            ("garbage", "line 1: 'garbage' is not the status line, POSITION STATUS [PASS]"),
            ("0 x", "line 1: 'x' is not a status of ddrescue: one of ? * / - F G +"),
            ("0 + one", "line 1: 'one' is not a number"),
            ("0 +\n0 zz +", "line 2: 'zz' is not a number"),
            ("0 +\n0 5", "line 2: '0 5' is not an area, POSITION SIZE STATUS"),
            ("0 +\n0 5 x", "line 2: 'x' is not the status of an area: one of ? * / - +"),
            ("0 +\n0 5 +\n\n4 5 -", "line 4: overlaps the area of line 2"),
            ("0 +\n1 0xffffffffffffffff +", "line 2: ends beyond every disk"),
        ] {
            assert_eq!(read(text).unwrap_err(), wrong, "{text}");
        }
    }
}
