//! How far ahead of a client to prefetch.
//!
//! The window starts small and grows while the client reads sequentially, until enough data is in
//! flight to hide the source's latency. It closes when the client jumps. Data that was fetched and
//! not read is then wasted. Therefore the window is never wider than what the client has read in a
//! row, now or before its last jump. A client that reads long runs soon has the widest window. A
//! client that reads a few pieces here and a few there wastes at most as much as it reads.
//!
//! Most clients that copy a disk never jump. As long as a client has not jumped, the window grows
//! by [`FIRST_RUN_FACTOR`] instead of 2 with each read, and may be that many times as wide as what
//! the client has read. In the first 40 MiB such a client waits for the source eight times instead
//! of twelve. At its first jump more data may be wasted, but only once for each connection.
//!
//! The window fits into three words of a slot in the host, because any instance may serve the
//! connection's next read.

/// The width of the first window in bytes. It is small because many clients only read a header at
/// the start of a disk.
pub const MIN_WIDTH: u64 = 32 << 10;

/// The width of the widest window in bytes: 50 ms of latency at 320 MB/s. The host splits it into
/// pieces of 1 MiB, and by default fetches fewer of them at once. A cache below must be larger than
/// this.
pub const MAX_WIDTH: u64 = 16 << 20;

/// For a client that has never jumped: by which factor the window grows with each read, and how
/// many times as wide as what the client has read it may be.
const FIRST_RUN_FACTOR: u64 = 4;

/// A wide window is filled up again when this many bytes are missing: one piece of the host's, so
/// that each piece that the client has read is followed by a new one.
const REFILL: u64 = 1 << 20;

/// Reads may arrive out of order by this many times their length and still count as sequential,
/// because the requests that a client has in flight are served in parallel.
const REORDER: u64 = 16;

/// The packed width is in units of 2^11 bytes, 2 KiB.
const WIDTH_SHIFT: u32 = 11;

/// Where the client reads, and what was requested for it. All zeroes at first, so that a read at
/// offset 0 starts a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The end of the furthest read of the sequence.
    pub position: u64,
    /// In bytes, at most [`MAX_WIDTH`]. 0 before a sequence has started.
    pub width: u64,
    /// Everything up to this offset was requested.
    pub ahead: u64,
    /// How many bytes were read in this sequence, counted up to [`MAX_WIDTH`].
    pub run: u64,
    /// The value of `run` at the end of the previous sequence; 0 if there was none.
    pub last: u64,
}

impl Window {
    /// The window after a read, and the range to prefetch (offset and length), which lies within
    /// `size`.
    pub fn read(self, offset: u64, length: u64, size: u64) -> (Window, Option<(u64, u64)>) {
        let end = offset.saturating_add(length);
        if offset.abs_diff(self.position) > REORDER.saturating_mul(length) {
            // A single read says nothing about the length of sequences.
            let last = if self.width == 0 { self.last } else { self.run };
            return (Window { position: end, width: 0, ahead: end, run: length.min(MAX_WIDTH), last }, None);
        }
        if end <= self.position {
            // A read of the sequence that arrived late.
            return (self, None);
        }
        let run = self.run.saturating_add(end - self.position).min(MAX_WIDTH);
        let (useful, growth) =
            if self.last == 0 { (run * FIRST_RUN_FACTOR, FIRST_RUN_FACTOR) } else { (run.max(self.last), 2) };
        let width =
            if self.width == 0 { MIN_WIDTH } else { (self.width * growth).min(useful.max(MIN_WIDTH)).min(MAX_WIDTH) };
        let from = self.ahead.max(end);
        let to = end.saturating_add(width).min(size);
        let next = Window { position: end, width, ahead: self.ahead.max(end), run, last: self.last };
        // Few long requests are better than many short ones: wait until a quarter of the window, or
        // REFILL, is missing.
        if to > from && (to - from >= (width / 4).min(REFILL) || to == size) {
            (Window { ahead: to, ..next }, Some((from, to - from)))
        } else {
            (next, None)
        }
    }

    /// The window if the host did not accept a range that starts at `from`.
    pub fn refused(self, from: u64) -> Window {
        Window { ahead: self.ahead.min(from).max(self.position), ..self }
    }

    /// As three words of a slot.
    pub fn pack(self) -> [u64; 3] {
        // `run` and `last` are at most MAX_WIDTH, which takes 25 bits. The width gets the other 14
        // bits.
        let sizes = self.run << 39 | self.last << 14 | (self.width >> WIDTH_SHIFT);
        [self.position, self.ahead, sizes]
    }

    /// What [`Window::pack`] made.
    pub fn unpack([position, ahead, sizes]: [u64; 3]) -> Window {
        let part = |shift: u32, bits: u32| sizes >> shift & ((1 << bits) - 1);
        Window { position, ahead, run: part(39, 25), last: part(14, 25), width: part(0, 14) << WIDTH_SHIFT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 40;

    /// Applies some reads, and returns the ranges to prefetch. The window goes through the words of
    /// a slot, as in the filter.
    fn reads(window: &mut Window, list: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let step = |(offset, length)| {
            let (next, fetch) = window.read(offset, length, SIZE);
            *window = Window::unpack(next.pack());
            fetch
        };
        list.into_iter().filter_map(step).collect()
    }

    #[test]
    fn the_first_read_at_offset_0_opens_the_smallest_window() {
        assert_eq!(reads(&mut Window::default(), [(0, 4096)]), [(4096, MIN_WIDTH)]);
    }

    #[test]
    fn the_window_doubles_while_reads_are_sequential_up_to_the_widest() {
        let mut window = Window::default();
        // A client that has jumped before.
        reads(&mut window, (0..2).map(|n| ((1 << 30) + n * 65536, 65536)));
        let mut widths = vec![];
        for n in 0..400 {
            reads(&mut window, [(n * 65536, 65536)]);
            widths.push(window.width);
        }
        assert_eq!(widths[..4], [0, MIN_WIDTH, 2 * MIN_WIDTH, 4 * MIN_WIDTH]);
        assert_eq!(widths[399], MAX_WIDTH);
        assert!(widths.is_sorted());
    }

    /// How many times a client waits for the source while it reads `bytes` in pieces of 64 KiB, if
    /// all that is requested together also arrives together.
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
    fn a_client_that_has_never_jumped_soon_has_the_widest_window() {
        let mut trusted = Window::default();
        let few = waits(&mut trusted, 40 << 20);
        assert_eq!(trusted.width, MAX_WIDTH);
        let mut known = Window { last: 65536, ..Window::default() };
        let more = waits(&mut known, 40 << 20);
        assert!(few <= 8 && few + 4 <= more, "{few} waits, {more} after a jump");
    }

    #[test]
    fn after_a_jump_the_window_is_no_wider_than_what_was_read_in_a_row() {
        let mut window = Window { last: 4096, ..Window::default() };
        let mut read = 0;
        for n in 0..100 {
            let length = 4096 << (n % 5);
            reads(&mut window, [(read, length)]);
            read += length;
            assert!(window.width <= read.max(MIN_WIDTH), "{window:?} after {read}");
        }
    }

    #[test]
    fn prefetched_ranges_have_no_gaps_or_overlaps() {
        let mut window = Window::default();
        let fetched = reads(&mut window, (0..10_000).map(|n| (n * 4096, 4096)));
        for pair in fetched.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        assert!(fetched.len() < 120, "{} fetches for 10000 reads", fetched.len());
        let (from, length) = fetched[fetched.len() - 1];
        assert!(from + length >= 10_000 * 4096 + MAX_WIDTH - REFILL, "the client is about to overtake");
    }

    #[test]
    fn a_jump_closes_the_window_until_reads_are_sequential_again() {
        let mut window = Window::default();
        reads(&mut window, (0..9).map(|n| (n * 65536, 65536)));
        assert_eq!(reads(&mut window, [(1 << 30, 65536)]), []);
        assert_eq!(window.width, 0);
        assert_eq!(reads(&mut window, [((1 << 30) + 65536, 65536)]), [((1 << 30) + 131072, MIN_WIDTH)]);
    }

    #[test]
    fn short_runs_waste_no_more_than_they_read() {
        let mut window = Window::default();
        let (mut read, mut fetched) = (0, 0);
        // A long run first: it must not decide the width for all the short runs after it.
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
    fn random_reads_prefetch_almost_nothing() {
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
    fn reads_that_arrive_slightly_out_of_order_are_one_sequence() {
        let mut window = Window::default();
        // Groups of sixteen in reverse order, as from a client with sixteen requests in flight.
        let list: Vec<_> = (0..400).map(|n: u64| ((n ^ 15) * 262144, 262144)).collect();
        let fetched = reads(&mut window, list);
        assert_eq!(window.width, MAX_WIDTH);
        for pair in fetched.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} was requested twice");
        }
    }

    #[test]
    fn nothing_is_prefetched_beyond_the_end() {
        let (window, fetch) = Window::default().read(0, 4096, 8192);
        assert_eq!(fetch, Some((4096, 4096)));
        assert_eq!(window.read(4096, 4096, 8192).1, None);
    }

    #[test]
    fn the_largest_offsets_do_not_overflow() {
        let window =
            Window { position: u64::MAX - 1, width: MAX_WIDTH, ahead: u64::MAX, run: MAX_WIDTH, last: MAX_WIDTH };
        assert_eq!(window.read(u64::MAX - 1, u64::MAX, u64::MAX).1, None);
        assert_eq!(Window::unpack(window.pack()), window);
    }

    #[test]
    fn a_range_that_was_not_accepted_is_requested_again() {
        let (window, fetch) = Window::default().read(0, 4096, SIZE);
        let window = window.refused(fetch.unwrap().0);
        let (_, again) = window.read(4096, 4096, SIZE);
        assert_eq!(again, Some((8192, MIN_WIDTH)));
    }
}
