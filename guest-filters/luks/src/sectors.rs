//! Cuts a request into whole sectors and parts of sectors.

/// The pieces of a request, in order. Each may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// The end of a sector, or a part in the middle of one.
    pub head: Option<Part>,
    /// Whole sectors.
    pub middle: Option<Whole>,
    /// The begin of a sector.
    pub tail: Option<Part>,
}

/// A part of one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where the sector begins on the disk.
    pub sector: u64,
    /// Where the part begins in the sector.
    pub skip: u32,
    /// Bytes of the part.
    pub length: u32,
    /// Where the part is in the payload.
    pub at: u32,
}

/// Whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Where they begin on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Where they are in the payload.
    pub at: u32,
}

/// Cuts `length` bytes at `offset`. `sector` is a power of two.
pub fn cut(offset: u64, length: u32, sector: u32) -> Pieces {
    let mut pieces = Pieces::default();
    let skip = (offset % u64::from(sector)) as u32;
    let mut at = 0;
    if skip > 0 || length < sector {
        let part = length.min(sector - skip);
        pieces.head = (part > 0).then_some(Part { sector: offset - u64::from(skip), skip, length: part, at: 0 });
        at = part;
    }
    let whole = (length - at) / sector * sector;
    if whole > 0 {
        pieces.middle = Some(Whole { offset: offset + u64::from(at), length: whole, at });
        at += whole;
    }
    if at < length {
        pieces.tail = Some(Part { sector: offset + u64::from(at), skip: 0, length: length - at, at });
    }
    pieces
}

/// The sectors that a request touches: their begin and their length in bytes.
pub fn around(offset: u64, length: u32, sector: u32) -> (u64, u64) {
    let mask = u64::from(sector) - 1;
    let start = offset & !mask;
    let end = (offset + u64::from(length) + mask) & !mask;
    (start, end - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_the_request() {
        for sector in [4_u32, 8] {
            for offset in 0..20_u64 {
                for length in 1..30_u32 {
                    let Pieces { head, middle, tail } = cut(offset, length, sector);
                    let mut next = 0;
                    for part in [head, tail].into_iter().flatten() {
                        assert!(part.length < sector && part.skip + part.length <= sector);
                        assert!(part.sector.is_multiple_of(sector.into()));
                        assert_eq!(part.sector + u64::from(part.skip), offset + u64::from(part.at));
                    }
                    let middle_piece = middle.map(|whole| (whole.at, whole.length));
                    let parts = [
                        head.map(|part| (part.at, part.length)),
                        middle_piece,
                        tail.map(|part| (part.at, part.length)),
                    ];
                    for (at, length) in parts.into_iter().flatten() {
                        assert_eq!(at, next);
                        next += length;
                    }
                    assert_eq!(next, length);
                    if let Some(whole) = middle {
                        assert!(whole.offset.is_multiple_of(sector.into()) && whole.length.is_multiple_of(sector));
                        assert_eq!(whole.offset, offset + u64::from(whole.at));
                    }
                    let (start, around) = around(offset, length, sector);
                    assert!(start <= offset && offset + u64::from(length) <= start + around);
                    assert!(around < u64::from(length) + 2 * u64::from(sector));
                }
            }
        }
    }
}
