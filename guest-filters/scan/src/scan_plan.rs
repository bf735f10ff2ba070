//! Which range a scan of a disk fetches next.

/// How many prefetches may have been in progress when the last client left: more than the default
/// limit of a connection, which is 12.
const IN_PROGRESS: u64 = 16;

/// The parameters that decide the order of the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanPlan {
    /// Bytes of one prefetch.
    pub step: u64,
    /// Whether to skip forward to where clients read.
    pub ahead: bool,
    /// Whether to start again at the end of the disk.
    pub forever: bool,
}

impl ScanPlan {
    /// The position of the scan after a client has read up to `end`.
    pub fn after_read(&self, position: u64, end: u64) -> u64 {
        if self.ahead { position.max(end) } else { position }
    }

    /// The position of the scan when clients come back. Prefetches that were in progress when the
    /// last client left may not have completed, so the scan repeats as many; those that did
    /// complete cost nothing. It does not go back before `start`, where it started or where a
    /// client moved it.
    pub fn resume(&self, position: u64, start: u64) -> u64 {
        position.saturating_sub(IN_PROGRESS * self.step).max(start.min(position))
    }

    /// The range to fetch at `position` of a disk of `size` bytes, as offset and length. It ends at
    /// a multiple of the step or at the end of the disk. `None` at the end, unless the scan goes on
    /// forever.
    pub fn next_range(&self, position: u64, size: u64) -> Option<(u64, u64)> {
        let from = match position < size {
            true => position,
            false if self.forever => 0,
            false => return None,
        };
        let to = (from / self.step).saturating_add(1).saturating_mul(self.step).min(size);
        (from < to).then_some((from, to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: ScanPlan = ScanPlan { step: 100, ahead: true, forever: false };

    fn all(plan: ScanPlan, mut position: u64, size: u64, max: usize) -> Vec<(u64, u64)> {
        let mut list = vec![];
        while let Some((from, length)) = plan.next_range(position, size).filter(|_| list.len() < max) {
            list.push((from, length));
            position = from + length;
        }
        list
    }

    #[test]
    fn a_disk_is_scanned_once_from_start_to_end() {
        assert_eq!(all(PLAN, 0, 250, 10), [(0, 100), (100, 100), (200, 50)]);
        assert_eq!(all(PLAN, 0, 0, 10), []);
    }

    #[test]
    fn it_skips_forward_to_where_clients_read_and_never_back() {
        assert_eq!(PLAN.after_read(100, 130), 130);
        assert_eq!(PLAN.after_read(100, 30), 100);
        assert_eq!(ScanPlan { ahead: false, ..PLAN }.after_read(100, 130), 100);
        assert_eq!(all(PLAN, 130, 250, 10), [(130, 70), (200, 50)]);
    }

    #[test]
    fn prefetches_that_may_not_have_completed_are_repeated() {
        assert_eq!(PLAN.resume(5000, 0), 5000 - 1600);
        assert_eq!(PLAN.resume(5000, 4000), 4000);
        assert_eq!(PLAN.resume(500, 0), 0);
        assert_eq!(PLAN.resume(500, 600), 500, "it never skips forward");
    }

    #[test]
    fn forever_starts_again_at_the_end() {
        let plan = ScanPlan { forever: true, ..PLAN };
        assert_eq!(all(plan, 150, 200, 4), [(150, 50), (0, 100), (100, 100), (0, 100)]);
        assert_eq!(all(plan, 0, 0, 4), []);
    }

    #[test]
    fn the_largest_position_ends_the_scan() {
        assert_eq!(PLAN.next_range(u64::MAX, u64::MAX), None);
        assert_eq!(PLAN.next_range(u64::MAX - 1, u64::MAX), Some((u64::MAX - 1, 1)));
    }
}
