//! Tracks which bytes of an answer have come: each byte once, and all of them in the end.

/// The most separate runs. Servers send the chunks of a read in order, or in parallel from a few
/// threads, so there are few runs at a time.
const MAX_RUNS: usize = 1024;

/// Runs of bytes, ascending, with a gap between neighbours.
#[derive(Default)]
pub(crate) struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Adds the bytes from `from` up to `to`. Returns false, and adds nothing, if the range is
    /// empty, if some of the bytes have come before, or if there are too many runs.
    pub(crate) fn add(&mut self, from: u32, to: u32) -> bool {
        if from >= to {
            return false;
        }
        let next = self.0.partition_point(|&(_, end)| end < from);
        let touches_next = |run: usize| self.0.get(run).is_some_and(|&(start, _)| start == to);
        match self.0.get(next) {
            Some(&(start, end)) if end == from => {
                if self.0.get(next + 1).is_some_and(|&(start, _)| start < to) {
                    return false;
                }
                if touches_next(next + 1) {
                    let (_, end) = self.0.remove(next + 1);
                    self.0[next] = (start, end);
                } else {
                    self.0[next].1 = to;
                }
            }
            Some(&(start, end)) if start <= to => {
                if start < to {
                    return false;
                }
                self.0[next] = (from, end);
            }
            _ if self.0.len() == MAX_RUNS => return false,
            _ => self.0.insert(next, (from, to)),
        }
        true
    }

    /// Whether all bytes of `0..length` have come.
    pub(crate) fn is_all(&self, length: u32) -> bool {
        self.0[..] == [(0, length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_set_of_bytes() {
        // Every sequence of three ranges within six bytes.
        let all: Vec<(u32, u32)> = (0..7).flat_map(|from| (0..7).map(move |to| (from, to))).collect();
        for &a in &all {
            for &b in &all {
                for &c in &all {
                    let mut ranges = Ranges::default();
                    let mut set = [false; 7];
                    for (from, to) in [a, b, c] {
                        let bytes = || from as usize..to as usize;
                        let right = from < to && bytes().all(|at| !set[at]);
                        assert_eq!(ranges.add(from, to), right, "{a:?} {b:?} {c:?}");
                        if right {
                            bytes().for_each(|at| set[at] = true);
                        }
                    }
                    assert_eq!(ranges.is_all(6), set[..6].iter().all(|&byte| byte), "{a:?} {b:?} {c:?}");
                }
            }
        }
    }

    #[test]
    fn a_server_that_leaves_ever_more_gaps_is_stopped() {
        let mut ranges = Ranges::default();
        let taken = (0..10_000).take_while(|nth| ranges.add(nth * 2, nth * 2 + 1)).count();
        assert_eq!(taken, MAX_RUNS);
    }
}
