//! A disk that is divided into ranges with a value each, and gaps between them.

use std::collections::BTreeMap;

/// A range of the disk. `end` is the first byte behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<T> {
    /// The first byte.
    pub start: u64,
    /// The first byte behind the range.
    pub end: u64,
    /// What the range stands for.
    pub value: T,
}

/// A part of a request that lies within one segment or one gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<T> {
    /// In bytes.
    pub offset: u64,
    /// In bytes, at least 1.
    pub length: u64,
    /// The segment. None in a gap.
    pub segment: Option<Segment<T>>,
}

/// Segments that do not overlap, in ascending order. None of them is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments<T>(Vec<Segment<T>>);

impl<T: Copy> Segments<T> {
    /// Sorts the segments, and leaves out empty ones.
    ///
    /// # Errors
    /// Two segments that overlap, in ascending order.
    pub fn new(mut list: Vec<Segment<T>>) -> Result<Segments<T>, (Segment<T>, Segment<T>)> {
        list.retain(|segment| segment.start < segment.end);
        list.sort_unstable_by_key(|segment| segment.start);
        match list.windows(2).find(|pair| pair[0].end > pair[1].start) {
            Some(pair) => Err((pair[0], pair[1])),
            None => Ok(Segments(list)),
        }
    }

    /// Lets segments overlap: the one that comes first in the list counts.
    pub fn first_counts(list: impl IntoIterator<Item = Segment<T>>) -> Segments<T> {
        let mut taken: BTreeMap<u64, Segment<T>> = BTreeMap::new();
        for segment in list {
            let mut at = segment.start;
            while at < segment.end {
                let before = taken.range(..=at).next_back().filter(|(_, other)| other.end > at);
                if let Some((_, other)) = before {
                    at = other.end;
                    continue;
                }
                let next = taken.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
                let end = segment.end.min(next);
                taken.insert(at, Segment { start: at, end, value: segment.value });
                at = end;
            }
        }
        Segments(taken.into_values().collect())
    }

    /// The pieces of a request, in ascending order. Together they are the whole request.
    pub fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece<T>> + '_ {
        let end = offset.saturating_add(length);
        let mut at = offset;
        let mut index = self.0.partition_point(|segment| segment.end <= offset);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (piece_end, segment) = match self.0.get(index) {
                Some(segment) if segment.start <= at => {
                    index += 1;
                    (segment.end.min(end), Some(*segment))
                }
                next => (next.map_or(end, |segment| segment.start.min(end)), None),
            };
            let piece = Piece { offset: at, length: piece_end - at, segment };
            at = piece_end;
            Some(piece)
        })
    }

    /// Whether a request lies in one gap.
    pub fn is_gap(&self, offset: u64, length: u64) -> bool {
        self.pieces(offset, length).all(|piece| piece.segment.is_none())
    }

    /// The segments in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &Segment<T>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, end: u64, value: char) -> Segment<char> {
        Segment { start, end, value }
    }

    /// The value of each byte of a request.
    fn bytes(segments: &Segments<char>, offset: u64, length: u64) -> String {
        let mut at = offset;
        let text = segments
            .pieces(offset, length)
            .map(|piece| {
                assert_eq!(piece.offset, at);
                assert!(piece.length > 0);
                at += piece.length;
                String::from(piece.segment.map_or('.', |segment| segment.value)).repeat(piece.length as usize)
            })
            .collect();
        assert_eq!(at, offset + length);
        text
    }

    #[test]
    fn a_request_is_cut_at_segments_and_gaps() {
        let segments = Segments::new(vec![segment(8, 10, 'b'), segment(2, 4, 'a'), segment(4, 5, 'c')]).unwrap();
        assert_eq!(bytes(&segments, 0, 12), "..aac...bb..");
        assert_eq!(bytes(&segments, 3, 6), "ac...b");
        assert_eq!(bytes(&segments, 5, 3), "...");
        assert!(segments.is_gap(5, 3) && !segments.is_gap(5, 4) && segments.is_gap(10, 100));
        assert_eq!(segments.pieces(3, 0).count(), 0);
        assert_eq!(segments.pieces(u64::MAX - 1, 5).count(), 1);
    }

    #[test]
    fn segments_that_overlap_are_refused_and_empty_ones_left_out() {
        let wrong = Segments::new(vec![segment(5, 9, 'b'), segment(0, 6, 'a')]).unwrap_err();
        assert_eq!(wrong, (segment(0, 6, 'a'), segment(5, 9, 'b')));
        let list = vec![segment(3, 3, 'a'), segment(0, 4, 'b')];
        assert_eq!(Segments::new(list).unwrap().iter().count(), 1);
    }

    #[test]
    fn of_segments_that_overlap_the_first_one_counts() {
        let list = [segment(4, 6, 'a'), segment(0, 10, 'b'), segment(5, 14, 'c'), segment(9, 9, 'd')];
        assert_eq!(bytes(&Segments::first_counts(list), 0, 16), "bbbbaabbbbcccc..");
        let list = [segment(0, 2, 'a'), segment(4, 6, 'b'), segment(8, 9, 'c'), segment(1, u64::MAX, 'd')];
        assert_eq!(bytes(&Segments::first_counts(list), 0, 12), "aaddbbddcddd");
    }
}
