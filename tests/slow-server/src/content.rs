//! The bytes that the server serves.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use crate::lock;

/// A disk's content.
pub enum Content {
    /// Random words that follow from the seed and the place, so that nothing has to be stored.
    Pattern {
        /// Chooses the words.
        seed: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// A file, which PUT changes.
    File(File),
    /// Bytes in memory, which PUT changes.
    Memory(Mutex<Vec<u8>>),
}

impl Content {
    /// A disk in memory.
    pub fn memory(bytes: Vec<u8>) -> Content {
        Content::Memory(Mutex::new(bytes))
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Pattern { size, .. } => *size,
            Content::File(file) => file.metadata().map_or(0, |metadata| metadata.len()),
            Content::Memory(bytes) => lock(bytes).len() as u64,
        }
    }

    /// Fills `bytes` from `offset`. Bytes past the end are zero.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Content::Pattern { seed, .. } => {
                fill_pattern(*seed, bytes, offset);
                Ok(())
            }
            Content::File(file) => {
                let mut done = 0;
                while done < bytes.len() {
                    match file.read_at(&mut bytes[done..], offset + done as u64)? {
                        0 => break,
                        n => done += n,
                    }
                }
                bytes[done..].fill(0);
                Ok(())
            }
            Content::Memory(all) => {
                let all = lock(all);
                let from = usize::try_from(offset).map_or(all.len(), |offset| offset.min(all.len()));
                let there = &all[from..all.len().min(from + bytes.len())];
                bytes[..there.len()].copy_from_slice(there);
                bytes[there.len()..].fill(0);
                Ok(())
            }
        }
    }

    /// Writes to the disk. False if this content or this range cannot be written.
    pub fn write(&self, bytes: &[u8], offset: u64) -> bool {
        match self {
            Content::Pattern { .. } => false,
            Content::File(file) => file.write_all_at(bytes, offset).is_ok(),
            Content::Memory(all) => {
                let mut all = lock(all);
                let Some(place) = usize::try_from(offset).ok().and_then(|at| all.get_mut(at..at + bytes.len())) else {
                    return false;
                };
                place.copy_from_slice(bytes);
                true
            }
        }
    }
}

/// The eight bytes at `8 * index` (splitmix64).
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

fn fill_pattern(seed: u64, bytes: &mut [u8], offset: u64) {
    let mut at = 0;
    while at < bytes.len() {
        let place = offset + at as u64;
        let within = (place % 8) as usize;
        let word = word(seed, place / 8);
        let length = (8 - within).min(bytes.len() - at);
        bytes[at..at + length].copy_from_slice(&word[within..within + length]);
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_from_wherever_it_is_read() {
        let content = Content::Pattern { seed: 7, size: 1000 };
        let mut all = vec![0; 1000];
        content.read(&mut all, 0).unwrap();
        for (offset, length) in [(0, 1), (3, 20), (8, 8), (991, 9)] {
            let mut part = vec![0; length];
            content.read(&mut part, offset as u64).unwrap();
            assert_eq!(part, all[offset..offset + length]);
        }
    }
}
