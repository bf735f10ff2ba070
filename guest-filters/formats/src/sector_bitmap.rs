//! Bitmaps with a bit for each sector, as differencing images have them. A bit that is set says
//! that the sector is in the image, and one that is not says that it is the parent's.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source};

/// At most so many sectors are looked at for one run: 4 KiB of a bitmap.
const MOST_ALIKE: u64 = 32 << 10;

/// Which bit of a byte is the first sector's.
#[derive(Clone, Copy, Debug)]
pub enum BitOrder {
    /// The most significant one.
    HighFirst,
    /// The least significant one.
    LowFirst,
}

/// Bitmaps in an image, of which a bounded number of bytes is kept.
pub struct SectorBitmaps {
    kept: BlockCache,
    order: BitOrder,
}

impl SectorBitmaps {
    /// Reads bitmaps in pieces of `block` bytes and keeps 256 KiB.
    pub fn new(image: &Rc<dyn Source>, block: u32, order: BitOrder) -> SectorBitmaps {
        SectorBitmaps { kept: BlockCache::new(Rc::clone(image), block, 256 << 10), order }
    }

    /// Whether a sector is here, and how many sectors from it on are alike, at most `most`.
    /// `bitmap` is where the bitmap begins in the image.
    ///
    /// # Errors
    /// Those of the image.
    pub fn alike(&self, bitmap: u64, sector: u64, most: u64) -> Result<(bool, u64), Error> {
        let most = most.min(MOST_ALIKE);
        let is_here = |byte: u8, sector: u64| match self.order {
            BitOrder::HighFirst => byte & (0x80 >> (sector % 8)) != 0,
            BitOrder::LowFirst => byte & (1 << (sector % 8)) != 0,
        };
        let mut at = sector;
        let mut bytes = self.kept.from(bitmap.saturating_add(at / 8))?;
        let first = is_here(bytes[0], at);
        let whole = if first { 0xff } else { 0 };
        let mut n = 0;
        while at < sector + most {
            if n == bytes.len() {
                drop(bytes);
                bytes = self.kept.from(bitmap.saturating_add(at / 8))?;
                n = 0;
            }
            if at.is_multiple_of(8) && bytes[n] == whole {
                at += 8;
                n += 1;
            } else if is_here(bytes[n], at) == first {
                at += 1;
                n += usize::from(at.is_multiple_of(8));
            } else {
                break;
            }
        }
        Ok((first, (at - sector).min(most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_a_loop_over_all_bits() {
        // Runs of many lengths: bit n is set if n * n / 300 is odd.
        let is_set = |n: u64| n * n / 300 % 2 == 1;
        for order in [BitOrder::HighFirst, BitOrder::LowFirst] {
            let mut bytes = vec![0; 10 + 2000];
            for n in (0..16_000).filter(|n| is_set(*n)) {
                bytes[10 + n as usize / 8] |= match order {
                    BitOrder::HighFirst => 0x80 >> (n % 8),
                    BitOrder::LowFirst => 1 << (n % 8),
                };
            }
            let image: Rc<dyn Source> = Rc::new(bytes);
            let bitmaps = SectorBitmaps::new(&image, 512, order);
            for sector in (0..15_000).step_by(7) {
                for most in [1, 13, 1000] {
                    let run = (sector..sector + most).take_while(|n| is_set(*n) == is_set(sector)).count() as u64;
                    assert_eq!(bitmaps.alike(10, sector, most), Ok((is_set(sector), run)), "{sector} {most} {order:?}");
                }
            }
        }
    }

    #[test]
    fn a_bitmap_that_is_not_in_the_image_is_an_error() {
        let image: Rc<dyn Source> = Rc::new(vec![0; 600]);
        let bitmaps = SectorBitmaps::new(&image, 512, BitOrder::LowFirst);
        assert_eq!(bitmaps.alike(512, 0, 88 * 8), Ok((false, 88 * 8)));
        assert!(bitmaps.alike(512, 0, 88 * 8 + 1).is_err());
        assert!(bitmaps.alike(u64::MAX, 100, 1).is_err());
    }
}
