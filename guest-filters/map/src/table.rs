//! Which part of the disk lies where in the layer below.

use rbdkit_filter_shared::numbers::{parse_number, parse_range};
use rbdkit_filter_shared::segments::{Piece, Segment, Segments};

/// Where a range lies below: its first byte here, and there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    from: u64,
    to: u64,
}

/// The ranges that are moved. All others lie below where they are here.
#[derive(Debug)]
pub struct Table(Segments<Move>);

/// A part of a request that lies in one piece below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its position within the request.
    pub at: u64,
    /// Its offset below.
    pub below: u64,
    /// In bytes.
    pub length: u64,
}

/// A part of a request lies, wholly or in part, beyond the end of the layer below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The part's offset on this disk.
    pub offset: u64,
}

impl Table {
    /// Reads `START-END:DEST`. If ranges overlap, the first one counts.
    ///
    /// # Errors
    /// One line for the user.
    pub fn parse(texts: &[String]) -> Result<Table, String> {
        let segment = |text: &String| {
            let (range, dest) = text.split_once(':').ok_or("is not START-END:DEST")?;
            let (range, to) = (parse_range(range)?, parse_number(dest)?);
            let length = range.end - range.start;
            // A range without END ends with the disk.
            if range.end != u64::MAX && to.checked_add(length).is_none() {
                return Err("the destination ends beyond every disk".to_string());
            }
            Ok(Segment { start: range.start, end: range.end, value: Move { from: range.start, to } })
        };
        let list: Result<Vec<_>, String> =
            texts.iter().map(|text| segment(text).map_err(|wrong| format!("map={text}: {wrong}"))).collect();
        Ok(Table(Segments::first_counts(list?)))
    }

    /// The parts of a request, in ascending order, over a layer of `size` bytes.
    ///
    /// # Errors
    /// A part lies beyond the end of that layer.
    pub fn parts(&self, offset: u64, length: u64, size: u64) -> Result<Vec<Part>, Beyond> {
        let mut parts: Vec<Part> = Vec::new();
        for piece in self.0.pieces(offset, length) {
            let beyond = Beyond { offset: piece.offset };
            let below = place(piece).ok_or(beyond)?;
            below.checked_add(piece.length).filter(|end| *end <= size).ok_or(beyond)?;
            match parts.last_mut() {
                Some(last) if last.below + last.length == below => last.length += piece.length,
                _ => parts.push(Part { at: piece.offset - offset, below, length: piece.length }),
            }
        }
        Ok(parts)
    }

    /// How far what begins at `offset` lies in one piece below: the first byte there behind it.
    pub fn end_of_part(&self, offset: u64) -> u64 {
        let mut end = None;
        for piece in self.0.pieces(offset, u64::MAX - offset) {
            match place(piece) {
                Some(below) if end.is_none_or(|end| end == below) => end = Some(below.saturating_add(piece.length)),
                _ => break,
            }
        }
        end.unwrap_or(offset)
    }
}

/// Where a piece lies below. None if that is beyond every disk.
fn place(piece: Piece<Move>) -> Option<u64> {
    match piece.segment {
        Some(segment) => (piece.offset - segment.value.from).checked_add(segment.value.to),
        None => Some(piece.offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(texts: &[&str]) -> Result<Table, String> {
        Table::parse(&texts.iter().map(|text| text.to_string()).collect::<Vec<_>>())
    }

    /// Each part as (at, below, length).
    fn parts(texts: &[&str], offset: u64, length: u64) -> Result<Vec<(u64, u64, u64)>, u64> {
        let parts = table(texts).unwrap().parts(offset, length, 4096).map_err(|beyond| beyond.offset)?;
        Ok(parts.into_iter().map(|part| (part.at, part.below, part.length)).collect())
    }

    #[test]
    fn two_sectors_change_places() {
        let texts = ["0-511:512", "512-1023:0"];
        assert_eq!(parts(&texts, 0, 1536), Ok(vec![(0, 512, 512), (512, 0, 512), (1024, 1024, 512)]));
        assert_eq!(parts(&texts, 500, 20), Ok(vec![(0, 1012, 12), (12, 0, 8)]));
        assert_eq!(parts(&texts, 2000, 96), Ok(vec![(0, 2000, 96)]));
    }

    #[test]
    fn the_first_of_ranges_that_overlap_counts_and_neighbours_below_are_one_part() {
        let texts = ["100-199:1000", "0-299:2000"];
        assert_eq!(parts(&texts, 0, 300), Ok(vec![(0, 2000, 100), (100, 1000, 100), (200, 2200, 100)]));
        assert_eq!(parts(&["0-99:0", "100-199:100"], 0, 4096), Ok(vec![(0, 0, 4096)]));
        assert_eq!(parts(&["-:1000"], 5, 5), Ok(vec![(0, 1005, 5)]));
    }

    #[test]
    fn what_lies_beyond_the_layer_below_is_found() {
        assert_eq!(parts(&["0-511:4000"], 0, 96), Ok(vec![(0, 4000, 96)]));
        assert_eq!(parts(&["0-511:4000"], 0, 97), Err(0));
        assert_eq!(parts(&["0-511:512"], 4000, 200), Err(4000));
        assert_eq!(parts(&["0-:0xfffffffffffffff0"], 100, 1), Err(100));
    }

    #[test]
    fn a_part_ends_where_the_bytes_below_do_not_continue() {
        let table = table(&["0-511:512", "512-1023:1024", "2000-2999:0"]).unwrap();
        assert_eq!([0, 600, 1024, 1999, 2500].map(|at| table.end_of_part(at)), [1536, 1536, 2000, 2000, 1000]);
        assert_eq!(table.end_of_part(3000), u64::MAX);
    }

    #[test]
    fn a_wrong_range_is_named() {
        assert_eq!(table(&["0-511"]).unwrap_err(), "map=0-511: is not START-END:DEST");
        assert_eq!(table(&["9-5:0"]).unwrap_err(), "map=9-5:0: ends before it starts");
        assert!(table(&["0-5:x"]).unwrap_err().starts_with("map=0-5:x: 'x' is not a number"));
        let far = "map=0-0xff:0xffffffffffffffff: the destination ends beyond every disk";
        assert_eq!(table(&["0-0xff:0xffffffffffffffff"]).unwrap_err(), far);
    }
}
