//! The list of extents.

use rbdkit_filter_shared::lines::LineReader;
use rbdkit_filter_shared::numbers::{parse_number, parse_size};
use rbdkit_filter_shared::segments::{Segment, Segments};

/// The most extents that a list may have. Each instance of the filter has a copy of 24 bytes for
/// each extent, and half as much again while it reads the list.
pub const MAX_EXTENTS: usize = 1_000_000;

/// The types of an extent, as bits of the NBD protocol.
pub const HOLE: u8 = 1;
/// The second one.
pub const ZERO: u8 = 2;

/// What an extent stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// [`HOLE`] and [`ZERO`].
    pub bits: u8,
    /// The number of its line.
    line: u32,
}

/// Collects the lines of the file.
#[derive(Default)]
pub struct Reader(Vec<Segment<Kind>>);

impl LineReader for Reader {
    type List = Segments<Kind>;

    /// Takes the next line: `OFFSET LENGTH [TYPE]`. An empty line and one that begins with `#` say
    /// nothing.
    ///
    /// # Errors
    /// What is wrong with the line.
    fn line(&mut self, number: u64, text: &str) -> Result<(), String> {
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let (offset, length, kind) = match words[..] {
            [offset, length] => (offset, length, "0"),
            [offset, length, kind] => (offset, length, kind),
            _ => return Err(format!("'{text}' is not OFFSET LENGTH [TYPE]")),
        };
        let start = parse_size(offset)?;
        let end = start.checked_add(parse_size(length)?).ok_or("ends beyond every disk")?;
        if self.0.len() == MAX_EXTENTS {
            return Err(format!("the list has more than {MAX_EXTENTS} extents"));
        }
        self.0.push(Segment { start, end, value: Kind { bits: parse_type(kind)?, line: number as u32 } });
        Ok(())
    }

    /// Sorts the extents.
    ///
    /// # Errors
    /// Two of them overlap.
    fn finish(self) -> Result<Segments<Kind>, String> {
        Segments::new(self.0).map_err(|(a, b)| {
            let (first, second) = (a.value.line.min(b.value.line), a.value.line.max(b.value.line));
            format!("line {second}: overlaps the extent of line {first}")
        })
    }
}

/// A number, or words with commas between them.
fn parse_type(text: &str) -> Result<u8, String> {
    let wrong = || format!("'{text}' is not a type: hole, zero, hole,zero, or a number from 0 to 3");
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        let number = parse_number(text).map_err(|_| wrong())?;
        return u8::try_from(number).ok().filter(|bits| *bits <= HOLE | ZERO).ok_or_else(wrong);
    }
    text.split(',').try_fold(0, |bits, word| match word {
        "hole" => Ok(bits | HOLE),
        "zero" => Ok(bits | ZERO),
        _ => Err(wrong()),
    })
}

/// An extent of an answer: its offset, its length and its type.
pub type Answer = (u64, u64, u8);

/// The extents from `offset` on, which begin before `offset + length`: at most `most` of them. What
/// the list does not describe is a hole that reads as zero.
pub fn answer(list: &Segments<Kind>, offset: u64, length: u64, most: usize) -> Vec<Answer> {
    // No disk is larger than 2^63 - 1 bytes.
    let rest = (i64::MAX as u64).saturating_sub(offset);
    list.pieces(offset, rest)
        .take_while(|piece| piece.offset - offset < length)
        .map(|piece| (piece.offset, piece.length, piece.segment.map_or(HOLE | ZERO, |segment| segment.value.bits)))
        .take(most)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Segments<Kind>, String> {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(text.lines()) {
            reader.line(number, line.trim()).map_err(|wrong| format!("line {number}: {wrong}"))?;
        }
        reader.finish()
    }

    #[test]
    fn extents_may_come_in_any_order_and_gaps_are_holes() {
        let list = read("1M 1M hole\n\n# a comment\n  0\t512   zero\n512 512 3\n3M 64k 0x2\n5M 0 7k").unwrap_err();
        assert_eq!(list, "line 7: '7k' is not a type: hole, zero, hole,zero, or a number from 0 to 3");
        let list = read("1M 1M hole\n\n# a comment\n  0\t512   zero\n512 512\n3M 64k 0x2\n5M 0 hole,zero").unwrap();
        let answer = answer(&list, 100, 3 << 20, 10);
        let gap = i64::MAX as u64 - (3 << 20) - 65536;
        let expected = [
            (100, 412, ZERO),
            (512, 512, 0),
            (1024, (1 << 20) - 1024, HOLE | ZERO),
            (1 << 20, 1 << 20, HOLE),
            (2 << 20, 1 << 20, HOLE | ZERO),
            (3 << 20, 65536, ZERO),
        ];
        assert_eq!(answer, expected);
        let last = super::answer(&list, 4 << 20, 1, 10);
        assert_eq!(last, [(4 << 20, gap - (1 << 20) + 65536, HOLE | ZERO)]);
        assert_eq!(super::answer(&list, 0, 3 << 20, 2).len(), 2);
    }

    #[test]
    fn an_extent_runs_on_beyond_the_request() {
        let list = read("0 1M\n1M 1M hole").unwrap();
        assert_eq!(answer(&list, 1000, 1, 10), [(1000, (1 << 20) - 1000, 0)]);
        assert_eq!(answer(&list, 1000, 1 << 20, 10)[1], (1 << 20, 1 << 20, HOLE));
        assert_eq!(answer(&read("").unwrap(), 0, 1, 10), [(0, i64::MAX as u64, HOLE | ZERO)]);
    }

    #[test]
    fn a_wrong_line_is_named_with_its_number() {
        for (text, wrong) in [
            ("0\n", "line 1: '0' is not OFFSET LENGTH [TYPE]"),
            ("0 1\n0 1 hole zero", "line 2: '0 1 hole zero' is not OFFSET LENGTH [TYPE]"),
            ("x 1", "line 1: 'x' is not a number of bytes, for example 512, 0x200 or 64k"),
            ("0 1 4", "line 1: '4' is not a type: hole, zero, hole,zero, or a number from 0 to 3"),
            ("0 1 hole,foo", "line 1: 'hole,foo' is not a type: hole, zero, hole,zero, or a number from 0 to 3"),
            ("\n512k 1M\n0 1M", "line 3: overlaps the extent of line 2"),
            ("1 18446744073709551615", "line 1: ends beyond every disk"),
        ] {
            assert_eq!(read(text).unwrap_err(), wrong);
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        let mut reader = Reader(vec![Segment { start: 0, end: 0, value: Kind { bits: 0, line: 1 } }; MAX_EXTENTS]);
        assert_eq!(reader.line(5, "0 1").unwrap_err(), "the list has more than 1000000 extents");
    }
}
