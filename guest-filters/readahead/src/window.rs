//! How far ahead of a client to read.
//!
//! The window starts small and grows while the client reads on, until enough is under way to hide the source's latency. It closes when the
//! client jumps, and then what was fetched and not read is wasted: so it never is wider than what the client has read in a row, now or
//! the last time. A client that reads long runs soon has the widest window; one that reads two pieces here and two there wastes at most as
//! much as it reads.
//!
//! A client that has not jumped yet is trusted: most that copy a disk never do. Each time the source is waited for, the window grows by what the
//! client got meanwhile, times [`TRUST`]: eight waits in the first 40 MiB instead of twelve. It is betrayed once a connection at most.
//!
//! It is as many words as fit into a slot of the host, because any of many instances may serve the connection's next read.

/// The first window: what a client that only reads a header at the start of a disk costs.
pub const MIN: u64 = 32 << 10;

/// The widest window: 50 ms of latency at 320 MB/s, and with the pieces of 1 MiB that the host cuts, more than it has under way at once by
/// default. A cache that is to hold it has to be larger.
pub const MAX: u64 = 16 << 20;

/// How many times what was read a client that never jumped has fetched ahead, and how much faster its window grows.
const TRUST: u64 = 4;

/// The most that is waited for before a wide window is filled up again: a piece of the host's, so that each that was read is followed by a new one.
const STEP: u64 = 1 << 20;

/// Reads may arrive this many read lengths out of order, and still be of one sequence: a client with many requests in flight has them
/// served side by side.
const REORDER: u64 = 16;

/// Where the client is and what was asked for. All zeroes at first, so that a read at 0 is the start of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The furthest byte of the sequence that was read.
    pub position: u64,
    /// Bytes; 0 before there is a sequence. At most [`MAX`].
    pub width: u64,
    /// Everything up to here was asked for.
    pub ahead: u64,
    /// Bytes that were read in this sequence, counted up to [`MAX`].
    pub run: u64,
    /// What `run` was in the sequence before; 0 if there was none.
    pub last: u64,
}

impl Window {
    /// The window after a read, and what is to be fetched: offset and length, within `size`.
    pub fn read(self, offset: u64, length: u64, size: u64) -> (Window, Option<(u64, u64)>) {
        let end = offset.saturating_add(length);
        if offset.abs_diff(self.position) > REORDER.saturating_mul(length) {
            // A single read says nothing of how long sequences are.
            let last = if self.width == 0 { self.last } else { self.run };
            return (Window { position: end, width: 0, ahead: end, run: length.min(MAX), last }, None);
        }
        if end <= self.position {
            // A straggler of the sequence.
            return (self, None);
        }
        let run = self.run.saturating_add(end - self.position).min(MAX);
        let (useful, growth) = if self.last == 0 { (run * TRUST, TRUST) } else { (run.max(self.last), 2) };
        let width = if self.width == 0 { MIN } else { (self.width * growth).min(useful.max(MIN)).min(MAX) };
        let from = self.ahead.max(end);
        let to = end.saturating_add(width).min(size);
        let next = Window { position: end, width, ahead: self.ahead.max(end), run, last: self.last };
        // Many small requests are worth less than few long ones: wait until a part of the window has to be filled.
        if to > from && (to - from >= (width / 4).min(STEP) || to == size) {
            (Window { ahead: to, ..next }, Some((from, to - from)))
        } else {
            (next, None)
        }
    }

    /// The window if a fetch from `from` was not taken after all.
    pub fn refused(self, from: u64) -> Window {
        Window { ahead: self.ahead.min(from).max(self.position), ..self }
    }

    /// As three words of a slot.
    pub fn pack(self) -> [u64; 3] {
        // Each is at most MAX, which takes 25 bits; the width is rounded down to what fits beside them.
        let sizes = self.run << 39 | self.last << 14 | (self.width >> GRAIN);
        [self.position, self.ahead, sizes]
    }

    /// What [`Window::pack`] made.
    pub fn unpack([position, ahead, sizes]: [u64; 3]) -> Window {
        let part = |shift: u32, bits: u32| sizes >> shift & ((1 << bits) - 1);
        Window { position, ahead, run: part(39, 25), last: part(14, 25), width: part(0, 14) << GRAIN }
    }
}

/// Bits of the width that are not kept: it is in units of 2 KiB.
const GRAIN: u32 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 40;

    /// Reads in turn; answers what was fetched. Through the words of a slot, as in the filter.
    fn reads(window: &mut Window, list: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let step = |(offset, length)| {
            let (next, fetch) = window.read(offset, length, SIZE);
            *window = Window::unpack(next.pack());
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
        // One that has jumped before.
        reads(&mut window, (0..2).map(|n| ((1 << 30) + n * 65536, 65536)));
        let mut widths = vec![];
        for n in 0..400 {
            reads(&mut window, [(n * 65536, 65536)]);
            widths.push(window.width);
        }
        assert_eq!(widths[..4], [0, MIN, 2 * MIN, 4 * MIN]);
        assert_eq!(widths[399], MAX);
        assert!(widths.is_sorted());
    }

    /// How often the source has to be waited for until `bytes` were read in pieces of 64 KiB, if it has all that was asked for together at once.
    fn waits(window: &mut Window, bytes: u64) -> u32 {
        let (mut there, mut asked, mut waits) = (0, 0, 0);
        for at in (0..bytes).step_by(65536) {
            if at + 65536 > there {
                waits += 1;
                there = asked.max(at + 65536);
            }
            for (from, length) in reads(window, [(at, 65536)]) {
                asked = from + length;
            }
        }
        waits
    }

    #[test]
    fn a_client_that_never_jumped_soon_has_the_widest_window() {
        let mut trusted = Window::default();
        let few = waits(&mut trusted, 40 << 20);
        assert_eq!(trusted.width, MAX);
        let mut known = Window { last: 65536, ..Window::default() };
        let more = waits(&mut known, 40 << 20);
        assert!(few <= 8 && few + 4 <= more, "{few} waits, {more} after a jump");
    }

    #[test]
    fn the_window_is_no_wider_than_what_was_read_in_a_row_once_the_client_has_jumped() {
        let mut window = Window { last: 4096, ..Window::default() };
        let mut read = 0;
        for n in 0..100 {
            let length = 4096 << (n % 5);
            reads(&mut window, [(read, length)]);
            read += length;
            assert!(window.width <= read.max(MIN), "{window:?} after {read}");
        }
    }

    #[test]
    fn what_is_fetched_follows_on_without_gaps_or_overlaps() {
        let mut window = Window::default();
        let fetched = reads(&mut window, (0..10_000).map(|n| (n * 4096, 4096)));
        for pair in fetched.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        assert!(fetched.len() < 120, "{} fetches for 10000 reads", fetched.len());
        let (from, length) = fetched[fetched.len() - 1];
        assert!(from + length >= 10_000 * 4096 + MAX - STEP, "the client is about to overtake");
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
    fn short_runs_waste_no_more_than_they_read() {
        let mut window = Window::default();
        let (mut read, mut fetched) = (0, 0);
        // A long run first, which must not be what the short ones are measured by for ever.
        fetched += reads(&mut window, (0..1000).map(|n| (n * 65536, 65536))).iter().map(|f| f.1).sum::<u64>();
        read += 1000 * 65536;
        for run in 1..200u64 {
            let start = run << 32;
            fetched += reads(&mut window, (0..4).map(|n| (start + n * 65536, 65536))).iter().map(|f| f.1).sum::<u64>();
            read += 4 * 65536;
        }
        assert!(fetched < 2 * read, "{fetched} bytes fetched for {read}");
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
        // Groups of sixteen backwards, as they may come from a client with as many requests in flight.
        let list: Vec<_> = (0..400).map(|n: u64| ((n ^ 15) * 262144, 262144)).collect();
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
        let window = Window { position: u64::MAX - 1, width: MAX, ahead: u64::MAX, run: MAX, last: MAX };
        assert_eq!(window.read(u64::MAX - 1, u64::MAX, u64::MAX).1, None);
        assert_eq!(Window::unpack(window.pack()), window);
    }

    #[test]
    fn what_was_not_taken_is_asked_for_again() {
        let (window, fetch) = Window::default().read(0, 4096, SIZE);
        let window = window.refused(fetch.unwrap().0);
        let (_, again) = window.read(4096, 4096, SIZE);
        assert_eq!(again, Some((8192, MIN)));
    }
}
