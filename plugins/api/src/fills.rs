//! What is known of each byte of a buffer, as a list of runs.

use crate::span::{Fill, Span};

/// Contiguous runs from 0 to the buffer's length: the end of each, and what its bytes are.
/// Neighbours differ. An empty buffer has no runs.
#[derive(Clone, Debug)]
pub(crate) struct Fills(Vec<(u32, Fill)>);

impl Fills {
    /// No runs, with capacity for the few that most requests have.
    #[inline]
    pub(crate) fn new() -> Fills {
        Fills(Vec::with_capacity(4))
    }

    /// Makes `len` bytes one run.
    #[inline]
    pub(crate) fn reset(&mut self, len: u32, fill: Fill) {
        self.0.clear();
        if len > 0 {
            self.0.push((len, fill));
        }
    }

    #[inline]
    pub(crate) fn clone_from(&mut self, other: &Fills) {
        self.0.clone_from(&other.0);
    }

    /// Makes `span` of a buffer of `len` bytes one run. It must lie within the buffer.
    #[inline]
    pub(crate) fn mark(&mut self, span: Span, fill: Fill, len: u32) {
        let end = span.at + span.len;
        if span.len == 0 {
            return;
        }
        if span.at == 0 && end == len {
            self.0.clear();
            self.0.push((end, fill));
            return;
        }
        self.mark_part(span.at, end, fill);
    }

    /// Makes the bytes from `at` to `end` one run, if that is not the whole buffer.
    fn mark_part(&mut self, at: u32, end: u32, fill: Fill) {
        let fills = &mut self.0;
        // `first` and `last` are the runs of the span's first and last byte, and `from` is where
        // the first begins. Plugins mark spans in ascending order, which changes only the end of
        // the list.
        let mut first = fills.partition_point(|&(to, _)| to <= at);
        let mut last = fills.partition_point(|&(to, _)| to < end);
        let from = if first == 0 { 0 } else { fills[first - 1].0 };
        let (before, (mut to, after)) = (fills[first].1, fills[last]);
        let mut pieces = [(0, fill); 3];
        let mut count = 0;
        let mut add = |piece: (u32, Fill)| {
            pieces[count] = piece;
            count += 1;
        };
        if from < at && before != fill {
            add((at, before));
        } else if from == at && first > 0 && fills[first - 1].1 == fill {
            first -= 1;
        }
        if to > end && after != fill {
            add((end, fill));
            add((to, after));
        } else {
            if to == end && fills.get(last + 1).is_some_and(|next| next.1 == fill) {
                last += 1;
                to = fills[last].0;
            }
            add((to, fill));
        }
        fills.splice(first..=last, pieces[..count].iter().copied());
    }

    /// The runs in ascending order.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Span, Fill)> + '_ {
        let mut from = 0;
        self.0.iter().map(move |&(to, fill)| {
            let span = Span::new(from, to - from);
            from = to;
            (span, fill)
        })
    }

    /// Whether the whole buffer is one run of data.
    #[inline]
    pub(crate) fn is_all_data(&self) -> bool {
        matches!(self.0[..], [(_, Fill::Data)])
    }

    /// Whether every byte of `span` is data.
    #[inline]
    pub(crate) fn is_data(&self, span: Span) -> bool {
        self.is_all_data()
            || span.len == 0
            || self
                .iter()
                .all(|(run, fill)| fill == Fill::Data || run.at + run.len <= span.at || run.at >= span.at + span.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    fn fills(buffer: &Buffer) -> Vec<(u32, u32, Fill)> {
        buffer.fills().map(|(span, fill)| (span.at, span.len, fill)).collect()
    }

    #[test]
    fn marks_split_and_merge_runs() {
        let mut buffer = Buffer::new(100);
        buffer.mark(Span::new(20, 10), Fill::Data);
        buffer.mark(Span::new(40, 10), Fill::Zero);
        assert_eq!(
            fills(&buffer),
            [
                (0, 20, Fill::Unfilled),
                (20, 10, Fill::Data),
                (30, 10, Fill::Unfilled),
                (40, 10, Fill::Zero),
                (50, 50, Fill::Unfilled)
            ]
        );
        buffer.mark(Span::new(30, 10), Fill::Data);
        buffer.mark(Span::new(0, 20), Fill::Data);
        assert_eq!(fills(&buffer), [(0, 40, Fill::Data), (40, 10, Fill::Zero), (50, 50, Fill::Unfilled)]);
        buffer.mark(Span::new(25, 75), Fill::Zero);
        assert_eq!(fills(&buffer), [(0, 25, Fill::Data), (25, 75, Fill::Zero)]);
        buffer.materialize(Span::new(0, 100));
        assert_eq!(fills(&buffer), [(0, 100, Fill::Data)]);
    }

    #[test]
    fn marks_agree_with_a_plain_model() {
        // A linear congruential generator is random enough to meet every order of overlaps.
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % limit
        };
        for _ in 0..200 {
            let mut buffer = Buffer::new(64);
            let mut model = [Fill::Unfilled; 64];
            for _ in 0..30 {
                let at = next(64);
                let len = next(64 - at + 1);
                let fill = [Fill::Unfilled, Fill::Zero, Fill::Data][next(3) as usize];
                buffer.mark(Span::new(at as u32, len as u32), fill);
                model[at as usize..(at + len) as usize].fill(fill);
                let flat: Vec<Fill> =
                    buffer.fills().flat_map(|(span, fill)| std::iter::repeat_n(fill, span.len as usize)).collect();
                assert_eq!(flat, model);
                let runs = fills(&buffer);
                assert!(runs.windows(2).all(|pair| pair[0].2 != pair[1].2), "{runs:?}");
            }
        }
    }
}
