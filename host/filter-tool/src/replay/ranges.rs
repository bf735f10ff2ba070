//! Ranges of a disk, and something that is known of each.

use std::collections::BTreeMap;

/// What can be known of a range.
pub trait Detail: Clone {
    /// What is known of the range without its first `skip` bytes.
    fn after(&self, skip: u64) -> Self;
}

impl Detail for () {
    fn after(&self, _: u64) {}
}

impl Detail for usize {
    fn after(&self, _: u64) -> usize {
        *self
    }
}

/// A part of a range: its offset and length, and what is known of it.
pub type Piece<K> = (u64, u64, Option<K>);

/// Ranges that do not overlap. Nothing is known of the rest.
#[derive(Clone, Debug)]
pub struct Ranges<K>(BTreeMap<u64, (u64, K)>);

impl<K> Default for Ranges<K> {
    fn default() -> Ranges<K> {
        Ranges(BTreeMap::new())
    }
}

impl<K: Detail> Ranges<K> {
    /// Forgets what is known of a range. `offset + length` does not overflow.
    pub fn remove(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let first = self.0.range(..offset).next_back().map(|(begin, _)| *begin);
        let begins: Vec<u64> = first.into_iter().chain(self.0.range(offset..end).map(|(begin, _)| *begin)).collect();
        for begin in begins {
            let Some((run_end, known)) = self.0.remove(&begin) else { continue };
            if run_end > end {
                self.0.insert(end, (run_end, known.after(end - begin)));
            }
            if begin < offset {
                self.0.insert(begin, (run_end.min(offset), known));
            }
        }
    }

    /// This is known of a range from now on.
    pub fn put(&mut self, offset: u64, length: u64, known: K) {
        self.remove(offset, length);
        if length > 0 {
            self.0.insert(offset, (offset + length, known));
        }
    }

    /// The pieces of a range, in order and without gaps.
    pub fn pieces(&self, offset: u64, length: u64) -> Vec<Piece<K>> {
        let end = offset + length;
        let first = self.0.range(..=offset).next_back().map_or(offset, |(begin, _)| *begin);
        let mut pieces = Vec::new();
        let mut at = offset;
        for (begin, (run_end, known)) in self.0.range(first..end) {
            if *run_end <= at {
                continue;
            }
            if *begin > at {
                pieces.push((at, begin - at, None));
                at = *begin;
            }
            let to = (*run_end).min(end);
            pieces.push((at, to - at, Some(known.after(at - begin))));
            at = to;
        }
        if at < end {
            pieces.push((at, end - at, None));
        }
        pieces
    }

    /// Whether something is known of a part of the range.
    pub fn touches(&self, offset: u64, length: u64) -> bool {
        let before = self.0.range(..offset + length).next_back();
        before.is_some_and(|(_, (end, _))| *end > offset)
    }

    /// All ranges: offset, length, and what is known.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &K)> {
        self.0.iter().map(|(begin, (end, known))| (*begin, end - begin, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the content comes from: the position of its first byte.
    impl Detail for u64 {
        fn after(&self, skip: u64) -> u64 {
            self + skip
        }
    }

    #[test]
    fn ranges_are_as_an_array_would_be() {
        let mut random = crate::check::content::Random::new(7);
        let mut ranges = Ranges::default();
        let mut array: Vec<Option<u64>> = vec![None; 64];
        for round in 0..20_000 {
            let offset = random.below(60);
            let length = random.below(64 - offset) + 1;
            let part = &mut array[offset as usize..][..length as usize];
            if random.chance(30) {
                ranges.remove(offset, length);
                part.fill(None);
            } else {
                let from = random.below(1 << 20);
                ranges.put(offset, length, from);
                part.iter_mut().zip(from..).for_each(|(place, value)| *place = Some(value));
            }
            let (from, count) = (random.below(60), random.below(4) + 1);
            let mut at = from;
            let mut told = Vec::new();
            for (begin, len, known) in ranges.pieces(from, count) {
                assert_eq!(begin, at, "round {round}");
                at += len;
                told.extend((0..len).map(|skip| known.map(|first| first + skip)));
            }
            let expected = &array[from as usize..][..count as usize];
            assert_eq!(told, expected, "round {round}");
            assert_eq!(ranges.touches(from, count), expected.iter().any(Option::is_some), "round {round}");
        }
    }
}
