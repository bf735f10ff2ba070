//! What the disk below has got and not yet made durable.

use std::ops::Range;

/// What is left of a write that is not durable: a later write may have replaced parts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remainder {
    /// The number of the write.
    number: u64,
    /// The length of the whole write in bytes.
    pub written: u64,
    /// What may be lost.
    pub range: Range<u64>,
}

/// What was written without FUA since the last flush.
#[derive(Debug, Default)]
pub struct Volatile {
    left: Vec<Remainder>,
    writes: u64,
}

impl Volatile {
    /// A write whose data may be lost.
    pub fn written(&mut self, range: Range<u64>) {
        self.writes += 1;
        self.left.push(Remainder { number: self.writes, written: range.end - range.start, range });
    }

    /// A write that is durable, or a trim: what was there before counts no more.
    pub fn replaced(&mut self, range: &Range<u64>) {
        self.writes += 1;
        let outside = |left: &Remainder| {
            let old = &left.range;
            let parts = [old.start..old.end.min(range.start), old.start.max(range.end)..old.end];
            parts.map(|part| Remainder { range: part, ..*left })
        };
        self.left = self.left.iter().flat_map(outside).filter(|left| !left.range.is_empty()).collect();
    }

    /// A flush has ended.
    pub fn flushed(&mut self) {
        self.left.clear();
    }

    /// The number of the last write.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// What is not durable of the writes up to this number.
    pub fn up_to(&self, write: u64) -> impl Iterator<Item = &Remainder> {
        self.left.iter().filter(move |left| left.number <= write)
    }

    /// What is not durable of the writes after this number.
    pub fn after(&self, write: u64) -> impl Iterator<Item = &Remainder> {
        self.left.iter().filter(move |left| left.number > write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges<'a>(left: impl Iterator<Item = &'a Remainder>) -> Vec<Range<u64>> {
        left.map(|left| left.range.clone()).collect()
    }

    #[test]
    fn a_flush_and_a_durable_write_leave_nothing_that_can_be_lost() {
        let mut volatile = Volatile::default();
        volatile.written(0..100);
        volatile.replaced(&(20..30));
        let mark = volatile.writes();
        volatile.written(200..300);
        assert_eq!(ranges(volatile.up_to(mark)), [0..20, 30..100]);
        assert_eq!(ranges(volatile.after(mark)), vec![200..300]);
        volatile.replaced(&(0..250));
        assert_eq!(ranges(volatile.up_to(u64::MAX)), vec![250..300]);
        volatile.flushed();
        assert!(ranges(volatile.up_to(u64::MAX)).is_empty());
    }

    #[test]
    fn a_part_of_a_write_is_known_by_the_length_of_the_whole() {
        let mut volatile = Volatile::default();
        // A block is written back, and then a part of it with FUA, as the cache filter does it.
        volatile.written(0..64);
        volatile.replaced(&(32..48));
        let left: Vec<_> = volatile.after(0).map(|left| (left.written, left.range.clone())).collect();
        assert_eq!(left, [(64, 0..32), (64, 48..64)]);
    }
}
