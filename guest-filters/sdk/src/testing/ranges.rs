//! Sets of bytes of a disk.

use std::collections::BTreeMap;

/// A set of ranges. Adjacent ranges are one.
#[derive(Clone, Default)]
pub(super) struct Ranges {
    /// From the first byte to the end.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(super) fn add(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset.saturating_add(length));
        if start == end {
            return;
        }
        let touching: Vec<u64> =
            self.ends.range(..=end).rev().take_while(|(_, to)| **to >= start).map(|(from, _)| *from).collect();
        for from in touching {
            let to = self.ends.remove(&from).unwrap_or(end);
            (start, end) = (start.min(from), end.max(to));
        }
        self.ends.insert(start, end);
    }

    pub(super) fn remove(&mut self, offset: u64, length: u64) {
        let (start, end) = (offset, offset.saturating_add(length));
        if start == end {
            return;
        }
        let touched: Vec<(u64, u64)> = self.within(start, end);
        for (from, to) in touched {
            self.ends.remove(&from);
            if from < start {
                self.ends.insert(from, start);
            }
            if to > end {
                self.ends.insert(end, to);
            }
        }
    }

    /// The whole ranges that have a byte in common with this one.
    fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let before = self.ends.range(..end).rev().take_while(|(_, to)| **to > start);
        let mut found: Vec<(u64, u64)> = before.map(|(from, to)| (*from, *to)).collect();
        found.reverse();
        found
    }

    pub(super) fn touches(&self, offset: u64, length: u64) -> bool {
        !self.within(offset, offset.saturating_add(length)).is_empty()
    }

    /// The parts of a range that are not in the set: offset and length.
    pub(super) fn gaps(&self, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let end = offset.saturating_add(length);
        let (mut at, mut gaps) = (offset, Vec::new());
        for (from, to) in self.within(offset, end) {
            if from > at {
                gaps.push((at, from - at));
            }
            at = at.max(to);
        }
        if at < end {
            gaps.push((at, end - at));
        }
        gaps
    }

    /// Offset and length of each range.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ends.iter().map(|(from, to)| (*from, to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with one truth for each byte.
    #[test]
    fn a_set_is_what_a_list_of_bytes_is() {
        let (mut set, mut bytes, mut seed) = (Ranges::default(), [false; 64], 1_u64);
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (at, length, adds) = (seed >> 58, (seed >> 50 & 15).min(64 - (seed >> 58)), seed >> 40 & 1 == 1);
            let range = at as usize..(at + length) as usize;
            if adds {
                set.add(at, length)
            } else {
                set.remove(at, length)
            }
            bytes[range].fill(adds);
            let gaps: u64 = set.gaps(0, 64).iter().map(|gap| gap.1).sum();
            assert_eq!(gaps, bytes.iter().filter(|byte| !**byte).count() as u64);
            for (n, byte) in bytes.iter().enumerate() {
                assert_eq!(set.touches(n as u64, 1), *byte, "{n}");
            }
            let whole: Vec<_> = set.iter().collect();
            assert!(whole.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "{whole:?}");
        }
    }
}
