//! Which blocks were used least recently. The answer is kept in one of the host's maps.
//!
//! Each cached block has a label: the generation in which it was last used. There are three labels,
//! which are reused in turn: one for the current generation, one for the generation before, and one
//! for everything older. When enough blocks have been used in the current generation, a new one
//! begins. It takes the oldest label, and the blocks that had that label get the next older one. So
//! a block never counts as older than it is by more than one generation.

use rbdkit_filter_blocks::{BlockSize, Host};

/// The map of labels: 0 for blocks that are not cached.
pub const MAP: u32 = 1;

/// The slot of [`Lru`]. Words: the block at which the next search starts, the number of the current
/// generation, and whether blocks are being reclaimed.
const SLOT: u32 = 0;

/// All labels.
const ALL: u8 = 1 << 1 | 1 << 2 | 1 << 3;

/// The content of the slot at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Lru {
    version: u64,
    hand: u64,
    generation: u64,
    /// Blocks are being reclaimed until the low threshold is reached.
    pub reclaiming: bool,
}

/// The label of the generation that is `age` generations old, 0 to 2.
fn label(generation: u64, age: u64) -> u8 {
    (1 + (generation % 3 + 3 - age) % 3) as u8
}

impl Lru {
    /// Reads the slot.
    pub fn get<H: Host>(host: &H) -> Lru {
        let slot = host.slot(SLOT);
        let [hand, generation, reclaiming, _] = slot.words;
        Lru { version: slot.version, hand, generation, reclaiming: reclaiming != 0 }
    }

    fn put<H: Host>(self, host: &H) -> bool {
        host.replace(SLOT, self.version, [self.hand, self.generation, self.reclaiming.into(), 0])
    }

    /// Records whether blocks are being reclaimed. If another request has changed the slot
    /// meanwhile, nothing is recorded, and the next request records it.
    pub fn set_reclaiming<H: Host>(self, host: &H, reclaiming: bool) {
        if self.reclaiming != reclaiming {
            Lru { reclaiming, ..self }.put(host);
        }
    }

    /// Records that `count` cached blocks from `first` on were used. `limit` is how many blocks may
    /// be cached; a generation ends when a quarter as many have been used in it.
    pub fn touch<H: Host>(host: &H, block_size: BlockSize, (first, count): (u64, u64), limit: u64) {
        let mut lru = Lru::get(host);
        if host.run(MAP, first, count) == (label(lru.generation, 0), count) {
            return;
        }
        if host.count(MAP, label(lru.generation, 0)) >= (limit / 4).max(1) {
            let Ok(size) = host.size() else { return };
            host.set(MAP, 0, block_size.count(0, size), 1 << label(lru.generation, 2), label(lru.generation, 1));
            lru.generation += 1;
            lru.put(host);
        }
        host.set(MAP, first, count, 1 | ALL, label(lru.generation, 0));
    }

    /// Removes the labels of blocks that are no longer cached.
    pub fn forget<H: Host>(host: &H, first: u64, count: u64) {
        host.set(MAP, first, count, ALL, 0);
    }

    /// Up to `max` neighbouring blocks among the least recently used, as the first one and their
    /// number.
    pub fn oldest<H: Host>(self, host: &H, max: u64) -> Option<(u64, u64)> {
        [2, 1, 0].into_iter().find_map(|age| {
            let label = label(self.generation, age);
            let block = host.find(MAP, self.hand, 1 << label).or_else(|| host.find(MAP, 0, 1 << label))?;
            Some((block, host.run(MAP, block, max).1))
        })
    }

    /// The block at which the next search starts.
    pub fn hand(self) -> u64 {
        self.hand
    }

    /// Makes the next search start at `block`.
    pub fn move_hand<H: Host>(self, host: &H, block: u64) {
        Lru { hand: block, ..self }.put(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_reused_in_turn_and_never_mean_not_cached() {
        for generation in 0..9 {
            let labels = [0, 1, 2].map(|age| label(generation, age));
            let mut sorted = labels;
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3]);
            assert_eq!(label(generation + 1, 1), labels[0]);
            assert_eq!(label(generation + 1, 0), labels[2], "a new generation takes the oldest label");
        }
    }
}
