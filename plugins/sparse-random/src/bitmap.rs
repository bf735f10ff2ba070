//! Which blocks of the disk hold data.
//!
//! A walk over the blocks is in one of two states, data or hole, and leaves it after each block
//! with a probability. So the disk has runs of data and runs of holes, as the disks of virtual
//! machines have. The probabilities follow from the wanted share of data and the wanted length of
//! a run of data.

use rbdkit_plugin_api::{ConfigError, units};
use rbdkit_synthetic::Generator;

/// The size of a block in bytes.
pub(crate) const BLOCK: u64 = 4096;

/// The most words of the bitmap that one answer about extents looks at: 256 GiB of the disk, which
/// takes a few milliseconds. The client asks again from there.
const MAX_WORDS: u64 = 1 << 20;

/// One bit for each block, set if it holds data.
#[derive(Debug)]
pub(crate) enum Bitmap {
    /// Every block is of this kind.
    All(Kind),
    /// Each block has a bit. Blocks beyond the end are holes.
    Words(Vec<u64>),
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Hole,
}

/// What the disk should look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The share of data in percent, from 0 to 100.
    pub(crate) percent: f64,
    /// The average length of a run of data in bytes, not 0.
    pub(crate) run_length: u64,
}

impl Bitmap {
    /// Draws the blocks of a disk of `size` bytes.
    ///
    /// # Errors
    /// One line: there is no memory.
    pub(crate) fn new(size: u64, seed: u64, shape: Shape) -> Result<Bitmap, ConfigError> {
        if shape.percent <= 0.0 {
            return Ok(Bitmap::All(Kind::Hole));
        }
        if shape.percent >= 100.0 {
            return Ok(Bitmap::All(Kind::Data));
        }
        let share = shape.percent / 100.0;
        let leave_data = 1.0 / (shape.run_length as f64 / BLOCK as f64);
        let leave_hole = share * leave_data / (1.0 - share);
        let blocks = size.div_ceil(BLOCK);
        let mut words = memory(blocks)?;
        let mut generator = Generator::new(seed);
        let mut kind = Kind::Hole;
        for block in 0..blocks {
            if kind == Kind::Data {
                words[(block / 64) as usize] |= 1 << (block % 64);
            }
            let probability = if kind == Kind::Data { leave_data } else { leave_hole };
            if generator.next_u64() as f64 <= probability * u64::MAX as f64 {
                kind = if kind == Kind::Data { Kind::Hole } else { Kind::Data };
            }
        }
        Ok(Bitmap::Words(words))
    }

    /// What this block holds.
    pub(crate) fn kind(&self, block: u64) -> Kind {
        match self {
            Bitmap::All(kind) => *kind,
            Bitmap::Words(words) => {
                let word = words.get((block / 64) as usize).copied().unwrap_or(0);
                if word >> (block % 64) & 1 == 1 { Kind::Data } else { Kind::Hole }
            }
        }
    }

    /// How many blocks from `block` on, and before `end`, hold the same as it does. The answer may
    /// be too small if it is very large, but it is not 0.
    pub(crate) fn run(&self, block: u64, end: u64) -> u64 {
        let Bitmap::Words(words) = self else { return end - block };
        let kind = self.kind(block);
        let flip = if kind == Kind::Data { u64::MAX } else { 0 };
        let last_word = (block / 64 + MAX_WORDS).min(end.div_ceil(64));
        // In a flipped word, the first bit that is set ends the run.
        let mut word = (words[(block / 64) as usize] ^ flip) & (u64::MAX << (block % 64));
        let mut number = block / 64;
        while word == 0 && number + 1 < last_word {
            number += 1;
            word = words[number as usize] ^ flip;
        }
        let found = number * 64 + u64::from(word.trailing_zeros());
        found.min(end) - block
    }
}

/// Zeroed words for this number of blocks.
fn memory(blocks: u64) -> Result<Vec<u64>, ConfigError> {
    let count = blocks.div_ceil(64);
    let mut words: Vec<u64> = Vec::new();
    let reserved = usize::try_from(count).ok().and_then(|count| words.try_reserve_exact(count).ok());
    reserved.ok_or_else(|| {
        let bytes = units::format_size(count.saturating_mul(8));
        ConfigError::new(format!("sparse-random: no memory for {bytes} bytes, one bit for each 4 KiB of the disk"))
    })?;
    words.resize(count as usize, 0);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { percent: 25.0, run_length: 16 * BLOCK };

    #[test]
    fn share_and_runs_of_data_are_about_what_was_wanted() {
        let blocks = 1 << 20;
        let map = Bitmap::new(blocks * BLOCK, 42, SHAPE).unwrap();
        let (mut at, mut data, mut runs) = (0, 0, 0);
        while at < blocks {
            let length = map.run(at, blocks);
            if map.kind(at) == Kind::Data {
                data += length;
                runs += 1;
            }
            at += length;
        }
        assert!((0.23..0.27).contains(&(data as f64 / blocks as f64)), "{data}");
        assert!((15.0..17.0).contains(&(data as f64 / runs as f64)), "{data} {runs}");
    }

    #[test]
    fn a_run_is_what_looking_at_each_block_says() {
        let blocks = 5000;
        let map = Bitmap::new(blocks * BLOCK - 1, 3, SHAPE).unwrap();
        for end in [blocks, 1, 63, 64, 65, 4999] {
            for block in 0..end {
                let same = (block..end).take_while(|other| map.kind(*other) == map.kind(block)).count();
                assert_eq!(map.run(block, end), same as u64, "{block} {end}");
            }
        }
    }

    #[test]
    fn nothing_and_everything_need_no_memory() {
        let size = i64::MAX as u64;
        for (percent, kind) in [(0.0, Kind::Hole), (100.0, Kind::Data)] {
            let map = Bitmap::new(size, 1, Shape { percent, ..SHAPE }).unwrap();
            assert_eq!(map.kind(size / BLOCK), kind);
            assert_eq!(map.run(10, size / BLOCK), size / BLOCK - 10);
        }
    }
}
