//! Where a scan of a disk is and what it asks for next.

/// Prefetches that may have been under way: more than a connection has by default.
const UNDER_WAY: u64 = 16;

/// What the parameters say of the scan's course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// Bytes of a prefetch.
    pub step: u64,
    /// Skips to where clients read, if that is further on.
    pub ahead: bool,
    /// Begins again at the end.
    pub forever: bool,
}

impl Course {
    /// Where the scan goes on after a client has read up to `end`.
    pub fn after_read(&self, position: u64, end: u64) -> u64 {
        if self.ahead { position.max(end) } else { position }
    }

    /// Where the scan goes on when clients come back. What was under way when the last one left may not have come to its end, so that much is asked
    /// for once more; what is there costs nothing. It never goes back behind `start`, where it began or was moved to.
    pub fn resume(&self, position: u64, start: u64) -> u64 {
        position.saturating_sub(UNDER_WAY * self.step).max(start.min(position))
    }

    /// What to fetch at `position` of a disk of `size` bytes, offset and length; nothing at the end. It reaches to a multiple of the step.
    pub fn next(&self, position: u64, size: u64) -> Option<(u64, u64)> {
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

    const COURSE: Course = Course { step: 100, ahead: true, forever: false };

    fn all(course: Course, mut position: u64, size: u64, most: usize) -> Vec<(u64, u64)> {
        let mut list = vec![];
        while let Some((from, length)) = course.next(position, size).filter(|_| list.len() < most) {
            list.push((from, length));
            position = from + length;
        }
        list
    }

    #[test]
    fn a_disk_is_scanned_once_from_its_beginning_to_its_end() {
        assert_eq!(all(COURSE, 0, 250, 10), [(0, 100), (100, 100), (200, 50)]);
        assert_eq!(all(COURSE, 0, 0, 10), []);
    }

    #[test]
    fn it_skips_to_where_clients_read_and_never_back() {
        assert_eq!(COURSE.after_read(100, 130), 130);
        assert_eq!(COURSE.after_read(100, 30), 100);
        assert_eq!(Course { ahead: false, ..COURSE }.after_read(100, 130), 100);
        assert_eq!(all(COURSE, 130, 250, 10), [(130, 70), (200, 50)]);
    }

    #[test]
    fn what_may_not_have_come_to_its_end_is_asked_for_again() {
        assert_eq!(COURSE.resume(5000, 0), 5000 - 1600);
        assert_eq!(COURSE.resume(5000, 4000), 4000);
        assert_eq!(COURSE.resume(500, 0), 0);
        assert_eq!(COURSE.resume(500, 600), 500, "never further on");
    }

    #[test]
    fn for_ever_is_again_and_again() {
        let course = Course { forever: true, ..COURSE };
        assert_eq!(all(course, 150, 200, 4), [(150, 50), (0, 100), (100, 100), (0, 100)]);
        assert_eq!(all(course, 0, 0, 4), []);
    }

    #[test]
    fn a_position_beyond_counting_ends_it() {
        assert_eq!(COURSE.next(u64::MAX, u64::MAX), None);
        assert_eq!(COURSE.next(u64::MAX - 1, u64::MAX), Some((u64::MAX - 1, 1)));
    }
}
