//! How far ahead of a client to read.
//!
//! The window starts small, doubles while the client reads on, and closes when it jumps. It is as many words as fit into a slot of the host,
//! because any of many instances may serve the connection's next read.

/// The first window: what a client that only reads a header at the start of a disk costs.
pub const MIN: u64 = 32 << 10;

/// The widest window: 20 ms of latency at 400 MB/s, which is what a good link to an object store gives.
pub const MAX: u64 = 8 << 20;

/// Reads may arrive this many read lengths out of order, and still be of one sequence: a client with many requests in flight has them
/// served side by side.
const REORDER: u64 = 8;

/// Where the client is and what was asked for. All zeroes at first, so that a read at 0 is the start of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The furthest byte of the sequence that was read.
    pub position: u64,
    /// Bytes; 0 before there is a sequence.
    pub width: u64,
    /// Everything up to here was asked for.
    pub ahead: u64,
}

impl Window {
    /// The window after a read, and what is to be fetched: offset and length, within `size`.
    pub fn read(self, offset: u64, length: u64, size: u64) -> (Window, Option<(u64, u64)>) {
        let end = offset.saturating_add(length);
        if offset.abs_diff(self.position) > REORDER.saturating_mul(length) {
            return (Window { position: end, width: 0, ahead: end }, None);
        }
        if end <= self.position {
            // A straggler of the sequence.
            return (self, None);
        }
        let width = if self.width == 0 { MIN } else { (self.width * 2).min(MAX) };
        let from = self.ahead.max(end);
        let to = end.saturating_add(width).min(size);
        let next = Window { position: end, width, ahead: self.ahead.max(end) };
        // Many small requests are worth less than few long ones: wait until a part of the window has to be filled.
        if to > from && (to - from >= width / 4 || to == size) {
            (Window { ahead: to, ..next }, Some((from, to - from)))
        } else {
            (next, None)
        }
    }

    /// The window if a fetch from `from` was not taken after all.
    pub fn refused(self, from: u64) -> Window {
        Window { ahead: self.ahead.min(from).max(self.position), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 40;

    /// Reads in turn; answers what was fetched.
    fn reads(window: &mut Window, list: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let step = |(offset, length)| {
            let (next, fetch) = window.read(offset, length, SIZE);
            *window = next;
            fetch
        };
        list.into_iter().filter_map(step).collect()
    }

    #[test]
    fn the_first_read_at_the_start_opens_the_smallest_window() {
        assert_eq!(reads(&mut Window::default(), [(0, 4096)]), [(4096, MIN)]);
    }

    #[test]
    fn the_window_doubles_while_reads_go_on_up_to_the_widest() {
        let mut window = Window::default();
        let mut widths = vec![];
        for n in 0..20 {
            reads(&mut window, [(n * 65536, 65536)]);
            widths.push(window.width);
        }
        assert_eq!(widths[..3], [MIN, 2 * MIN, 4 * MIN]);
        assert_eq!(widths[19], MAX);
        assert!(widths.is_sorted());
    }

    #[test]
    fn what_is_fetched_follows_on_without_gaps_or_overlaps() {
        let mut window = Window::default();
        let fetched = reads(&mut window, (0..1000).map(|n| (n * 4096, 4096)));
        for pair in fetched.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        assert!(fetched.len() < 100, "{} fetches for 1000 reads", fetched.len());
        let (from, length) = fetched[fetched.len() - 1];
        assert!(from + length >= 1000 * 4096 + MAX / 2, "the client is about to overtake");
    }

    #[test]
    fn a_jump_closes_the_window_and_fetches_nothing_until_reads_go_on() {
        let mut window = Window::default();
        reads(&mut window, (0..9).map(|n| (n * 65536, 65536)));
        assert_eq!(reads(&mut window, [(1 << 30, 65536)]), []);
        assert_eq!(window.width, 0);
        assert_eq!(reads(&mut window, [((1 << 30) + 65536, 65536)]), [((1 << 30) + 131072, MIN)]);
    }

    #[test]
    fn random_reads_fetch_next_to_nothing() {
        let seed = 7;
        println!("seed {seed}");
        let mut state: u64 = seed;
        let mut window = Window::default();
        let list: Vec<_> = (0..10000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 20) % SIZE / 4096 * 4096, 4096)
            })
            .collect();
        assert!(reads(&mut window, list).len() < 10);
    }

    #[test]
    fn reads_that_arrive_a_little_out_of_order_are_one_sequence() {
        let mut window = Window::default();
        // Pairs swapped: 1 0 3 2 5 4 ...
        let list: Vec<_> = (0..100).map(|n: u64| ((n ^ 1) * 262144, 262144)).collect();
        let fetched = reads(&mut window, list);
        assert_eq!(window.width, MAX);
        for pair in fetched.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} was asked for twice");
        }
    }

    #[test]
    fn nothing_is_fetched_beyond_the_end() {
        let (window, fetch) = Window::default().read(0, 4096, 8192);
        assert_eq!(fetch, Some((4096, 4096)));
        assert_eq!(window.read(4096, 4096, 8192).1, None);
    }

    #[test]
    fn offsets_at_the_end_of_what_can_be_counted_do_no_harm() {
        let window = Window { position: u64::MAX - 1, width: MAX, ahead: u64::MAX };
        assert_eq!(window.read(u64::MAX - 1, u64::MAX, u64::MAX).1, None);
    }

    #[test]
    fn what_was_not_taken_is_asked_for_again() {
        let (window, fetch) = Window::default().read(0, 4096, SIZE);
        let window = window.refused(fetch.unwrap().0);
        let (_, again) = window.read(4096, 4096, SIZE);
        assert_eq!(again, Some((8192, 2 * MIN)));
    }
}
