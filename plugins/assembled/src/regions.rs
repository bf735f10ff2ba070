//! Which part of a disk comes from where.

use std::fmt;
use std::sync::Arc;

/// Where the bytes of a region come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the beginning of the file with this number.
    File(usize),
    /// From memory. The region is as long as the bytes.
    Data(Arc<[u8]>),
    /// They are zero.
    Zero,
}

#[derive(Clone, Debug)]
struct Region {
    /// Where it begins on the disk.
    start: u64,
    length: u64,
    source: Source,
}

/// The regions of a disk, in ascending order and without gaps. None is empty, and their end is at
/// most 2^63 - 1.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    list: Vec<Region>,
    size: u64,
}

/// A disk would be larger than 2^63 - 1 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk would be larger than 2^63 - 1 bytes")
    }
}

impl std::error::Error for TooLarge {}

/// A part of a range that lies in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where the region's bytes come from.
    pub source: &'a Source,
    /// How far the piece begins behind the beginning of the region.
    pub within: u64,
    /// Bytes, never 0.
    pub length: u64,
}

impl Regions {
    /// The size of the disk so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the first `length` bytes of a file.
    ///
    /// # Errors
    /// The disk would be too large.
    pub fn push_file(&mut self, file: usize, length: u64) -> Result<(), TooLarge> {
        self.push(length, Source::File(file))
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The disk would be too large.
    pub fn push_data(&mut self, bytes: Arc<[u8]>) -> Result<(), TooLarge> {
        self.push(bytes.len() as u64, Source::Data(bytes))
    }

    /// Adds zeroes, until the disk has this size.
    ///
    /// # Errors
    /// The disk would be too large.
    pub fn pad_until(&mut self, size: u64) -> Result<(), TooLarge> {
        self.push(size.saturating_sub(self.size), Source::Zero)
    }

    /// Adds zeroes, until the size is a multiple of `alignment`, which is not 0.
    ///
    /// # Errors
    /// The disk would be too large.
    pub fn pad_to_multiple_of(&mut self, alignment: u64) -> Result<(), TooLarge> {
        self.pad_until(self.size.checked_next_multiple_of(alignment).ok_or(TooLarge)?)
    }

    fn push(&mut self, length: u64, source: Source) -> Result<(), TooLarge> {
        let end = self.size.checked_add(length).filter(|end| *end <= i64::MAX as u64).ok_or(TooLarge)?;
        if length > 0 {
            self.list.push(Region { start: self.size, length, source });
            self.size = end;
        }
        Ok(())
    }

    /// The parts of the range from `offset` on, which lies within the disk.
    pub fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece<'_>> {
        let first = self.list.partition_point(|region| region.start + region.length <= offset);
        let end = offset.saturating_add(length);
        self.list[first..].iter().take_while(move |region| region.start < end && offset < end).map(move |region| {
            let from = region.start.max(offset);
            let to = (region.start + region.length).min(end);
            Piece { source: &region.source, within: from - region.start, length: to - from }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of the tests: splitmix64.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut number = self.0;
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (number ^ (number >> 27)) % limit
        }
    }

    /// What a byte of the disk is: of which source, and how far from the beginning of the region.
    type Byte = (Source, u64);

    fn drawn(draw: &mut Draw) -> (Regions, Vec<Byte>) {
        let (mut regions, mut model) = (Regions::default(), Vec::new());
        for number in 0..draw.below(12) {
            let length = draw.below(40);
            let mut put = |source: Source, count| model.extend((0..count).map(|within| (source.clone(), within)));
            match draw.below(4) {
                0 => {
                    regions.push_file(number as usize, length).unwrap();
                    put(Source::File(number as usize), length);
                }
                1 => {
                    let data: Arc<[u8]> = vec![number as u8; length as usize].into();
                    regions.push_data(Arc::clone(&data)).unwrap();
                    put(Source::Data(data), length);
                }
                2 => {
                    let until = regions.size() + length;
                    regions.pad_until(until).unwrap();
                    put(Source::Zero, length);
                }
                _ => {
                    let alignment = 1 + draw.below(16);
                    let padding = regions.size().next_multiple_of(alignment) - regions.size();
                    regions.pad_to_multiple_of(alignment).unwrap();
                    put(Source::Zero, padding);
                }
            }
        }
        (regions, model)
    }

    #[test]
    fn every_range_is_cut_as_a_list_of_single_bytes_says() {
        let seed = std::env::var("RBDKIT_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        println!("RBDKIT_TEST_SEED={seed}");
        let mut draw = Draw(seed);
        for _ in 0..400 {
            let (regions, model) = drawn(&mut draw);
            assert_eq!(regions.size(), model.len() as u64);
            for _ in 0..20 {
                let offset = draw.below(regions.size() + 1);
                let length = draw.below(regions.size() - offset + 1);
                let mut bytes = Vec::new();
                for piece in regions.pieces(offset, length) {
                    assert!(piece.length > 0);
                    bytes.extend((piece.within..piece.within + piece.length).map(|at| (piece.source.clone(), at)));
                }
                assert_eq!(bytes, model[offset as usize..(offset + length) as usize]);
            }
        }
    }

    #[test]
    fn a_disk_ends_below_2_to_the_63() {
        let mut regions = Regions::default();
        regions.push_file(0, i64::MAX as u64 - 1).unwrap();
        assert_eq!(regions.push_file(1, 2), Err(TooLarge));
        assert_eq!(regions.pad_to_multiple_of(1 << 20), Err(TooLarge));
        assert_eq!(regions.pad_until(u64::MAX), Err(TooLarge));
        regions.push_file(1, 1).unwrap();
        assert_eq!(regions.size(), i64::MAX as u64);
        assert_eq!(regions.pieces(i64::MAX as u64 - 1, 1).count(), 1);
    }
}
