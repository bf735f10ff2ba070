//! Which blocks were used least recently, told by a map of the host.
//!
//! Each cached block has a label: the generation in which it was last used. There are three, in a ring: the present one, the one before,
//! and everything older. When enough blocks have been used in the present generation a new one begins, under the label of the oldest, whose
//! blocks are counted among the next older. So a block that was used since is never taken for an older one by more than a generation.

use rbdkit_filter_blocks::{Grid, Host};

/// The map of labels: 0 for blocks that are not cached.
pub const MAP: u32 = 1;

/// The slot with the state: where reclaiming goes on (a block), the number of the generation, and whether blocks are being reclaimed.
const SLOT: u32 = 0;

const ALL: u8 = 1 << 1 | 1 << 2 | 1 << 3;

/// The state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Lru {
    version: u64,
    hand: u64,
    generation: u64,
    /// Blocks are being reclaimed until the low threshold is reached.
    pub reclaiming: bool,
}

/// The label of generations that are `age` old.
fn label(generation: u64, age: u64) -> u8 {
    (1 + (generation % 3 + 3 - age) % 3) as u8
}

impl Lru {
    /// Reads it.
    pub fn get<H: Host>(host: &H) -> Lru {
        let slot = host.slot(SLOT);
        let [hand, generation, reclaiming, _] = slot.words;
        Lru { version: slot.version, hand, generation, reclaiming: reclaiming != 0 }
    }

    fn put<H: Host>(self, host: &H) -> bool {
        host.replace(SLOT, self.version, [self.hand, self.generation, self.reclaiming.into(), 0])
    }

    /// Says whether blocks are being reclaimed. If somebody else changed the state meanwhile, the next request says it again.
    pub fn set_reclaiming<H: Host>(self, host: &H, reclaiming: bool) {
        if self.reclaiming != reclaiming {
            Lru { reclaiming, ..self }.put(host);
        }
    }

    /// Some cached blocks were used. `limit` is how many may be cached.
    pub fn touch<H: Host>(host: &H, grid: Grid, first: u64, count: u64, limit: u64) {
        let mut lru = Lru::get(host);
        if host.run(MAP, first, count) == (label(lru.generation, 0), count) {
            return;
        }
        if host.count(MAP, label(lru.generation, 0)) >= (limit / 4).max(1) {
            let Ok(size) = host.size() else { return };
            host.set(MAP, 0, grid.count(0, size), 1 << label(lru.generation, 2), label(lru.generation, 1));
            lru.generation += 1;
            lru.put(host);
        }
        host.set(MAP, first, count, 1 | ALL, label(lru.generation, 0));
    }

    /// Blocks that are no longer cached.
    pub fn forget<H: Host>(host: &H, first: u64, count: u64) {
        host.set(MAP, first, count, ALL, 0);
    }

    /// Up to `most` neighbouring blocks that were used least recently: the first, and how many.
    pub fn oldest<H: Host>(self, host: &H, most: u64) -> Option<(u64, u64)> {
        [2, 1, 0].into_iter().find_map(|age| {
            let label = label(self.generation, age);
            let block = host.find(MAP, self.hand, 1 << label).or_else(|| host.find(MAP, 0, 1 << label))?;
            Some((block, host.run(MAP, block, most).1))
        })
    }

    /// Where the search goes on.
    pub fn hand(self) -> u64 {
        self.hand
    }

    /// The next search begins at `block`.
    pub fn move_hand<H: Host>(self, host: &H, block: u64) {
        Lru { hand: block, ..self }.put(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_go_round_and_never_mean_not_cached() {
        for generation in 0..9 {
            let labels = [0, 1, 2].map(|age| label(generation, age));
            let mut sorted = labels;
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3]);
            assert_eq!(label(generation + 1, 1), labels[0]);
            assert_eq!(label(generation + 1, 0), labels[2], "the oldest label is taken next");
        }
    }
}
