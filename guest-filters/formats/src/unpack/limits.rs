//! What an operator allows the units of a file.

use rbdkit_filter_sdk::image::Error;

use super::codec::{CHUNK, Index};

/// What decoded units may take in memory, in bytes.
const MAX_RECENT: u64 = 24 << 20;

/// What blocks of xz, members of lzip and frames of zstd may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file with a larger unit is refused. In bytes of decoded data.
    pub max_block: Option<u64>,
    /// How many decoded units stay in memory, as long as these are at most 24 MiB.
    pub max_depth: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_block: None, max_depth: 8 }
    }
}

impl Limits {
    /// Checks the units of a file. Returns how many bytes of decoded data may stay in memory.
    ///
    /// # Errors
    /// A line if a unit is too large.
    pub fn check(&self, unit: &str, index: &Index) -> Result<usize, Error> {
        let largest = index.largest();
        self.check_unit(unit, largest)?;
        Ok(self.max_depth.saturating_mul(largest).clamp(CHUNK, MAX_RECENT) as usize)
    }

    /// Checks one unit of `size` bytes.
    ///
    /// # Errors
    /// A line if it is too large.
    pub fn check_unit(&self, unit: &str, size: u64) -> Result<(), Error> {
        match self.max_block {
            Some(limit) if size > limit => {
                Err(Error::image(format!("a {unit} has {size} bytes, and the limit is {limit}")))
            }
            _ => Ok(()),
        }
    }
}
