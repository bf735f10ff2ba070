//! What the disk below has got and not yet made durable.

use std::ops::Range;

/// The ranges that were written without FUA since the last flush, each with the number of its
/// write.
#[derive(Debug, Default)]
pub struct Volatile {
    ranges: Vec<(u64, Range<u64>)>,
    writes: u64,
}

impl Volatile {
    /// A write whose data may be lost.
    pub fn written(&mut self, range: Range<u64>) {
        self.writes += 1;
        self.ranges.push((self.writes, range));
    }

    /// A write that is durable, or a trim: what was there before counts no more.
    pub fn replaced(&mut self, range: &Range<u64>) {
        self.writes += 1;
        let outside = |(number, old): &(u64, Range<u64>)| {
            let parts = [old.start..old.end.min(range.start), old.start.max(range.end)..old.end];
            parts.map(|part| (*number, part))
        };
        self.ranges = self.ranges.iter().flat_map(outside).filter(|(_, part)| !part.is_empty()).collect();
    }

    /// A flush has ended.
    pub fn flushed(&mut self) {
        self.ranges.clear();
    }

    /// The number of the last write.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// The ranges of the writes up to this number that are not durable.
    pub fn up_to(&self, write: u64) -> Vec<Range<u64>> {
        self.ranges.iter().filter(|(number, _)| *number <= write).map(|(_, range)| range.clone()).collect()
    }

    /// The ranges of the writes after this number that are not durable.
    pub fn after(&self, write: u64) -> Vec<Range<u64>> {
        self.ranges.iter().filter(|(number, _)| *number > write).map(|(_, range)| range.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_and_a_durable_write_leave_nothing_that_can_be_lost() {
        let mut volatile = Volatile::default();
        volatile.written(0..100);
        volatile.replaced(&(20..30));
        let mark = volatile.writes();
        volatile.written(200..300);
        assert_eq!(volatile.up_to(mark), [0..20, 30..100]);
        assert_eq!(volatile.after(mark), vec![200..300]);
        volatile.replaced(&(0..250));
        assert_eq!(volatile.up_to(u64::MAX), vec![250..300]);
        volatile.flushed();
        assert!(volatile.up_to(u64::MAX).is_empty());
    }
}
