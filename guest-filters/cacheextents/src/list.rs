//! A list of extents, its form as bytes in the scratch file, and the part of it that answers a
//! request.

/// A run of bytes of one type. It starts where the run before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The offset after its last byte.
    pub end: u64,
    /// Bit 0: it is a hole. Bit 1: it reads as zero.
    pub kind: u8,
}

/// How many runs are kept at most: 64 KiB of them.
pub const MAX_RUNS: usize = 4096;

/// How many bytes one packed run takes.
const RUN_BYTES: usize = 16;

/// Packs at most [`MAX_RUNS`] runs into bytes.
pub fn pack(runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(runs.len().min(MAX_RUNS) * RUN_BYTES);
    for run in runs.iter().take(MAX_RUNS) {
        bytes.extend_from_slice(&run.end.to_le_bytes());
        bytes.extend_from_slice(&u64::from(run.kind).to_le_bytes());
    }
    bytes
}

/// How many bytes `count` packed runs take.
pub fn packed_size(count: u64) -> u32 {
    count.min(MAX_RUNS as u64) as u32 * RUN_BYTES as u32
}

/// The inverse of [`pack`].
pub fn unpack(bytes: &[u8]) -> Vec<Run> {
    let (runs, _) = bytes.as_chunks::<RUN_BYTES>();
    runs.iter()
        .map(|run| {
            let (end, kind) = run.split_at(8);
            let mut word = [0; 8];
            word.copy_from_slice(end);
            Run { end: u64::from_le_bytes(word), kind: kind[0] & 3 }
        })
        .collect()
}

/// The extents of `offset..end` as offset, length and kind. The last one may run on beyond `end`.
/// `runs` are in ascending order and cover `offset`.
pub fn answer(runs: &[Run], offset: u64, end: u64, one: bool) -> Vec<(u64, u64, u8)> {
    let mut from = offset;
    let mut list = Vec::new();
    for run in runs.iter().filter(|run| run.end > offset) {
        if from >= end || one && !list.is_empty() {
            break;
        }
        if run.end > from {
            list.push((from, run.end - from, run.kind));
            from = run.end;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: [Run; 3] = [Run { end: 100, kind: 0 }, Run { end: 300, kind: 3 }, Run { end: 500, kind: 2 }];

    #[test]
    fn unpacked_runs_are_the_packed_ones() {
        assert_eq!(unpack(&pack(&RUNS)), RUNS);
        assert_eq!(pack(&RUNS).len() as u32, packed_size(3));
        assert_eq!(pack(&[RUNS[0]; MAX_RUNS + 1]).len() as u32, packed_size(MAX_RUNS as u64 + 1));
        assert_eq!(unpack(&[1; 17]).len(), 1);
    }

    #[test]
    fn an_answer_begins_where_the_range_does_and_ends_with_the_run_that_reaches_its_end() {
        assert_eq!(answer(&RUNS, 50, 400, false), [(50, 50, 0), (100, 200, 3), (300, 200, 2)]);
        assert_eq!(answer(&RUNS, 100, 300, false), [(100, 200, 3)]);
        assert_eq!(answer(&RUNS, 299, 1000, false), [(299, 1, 3), (300, 200, 2)]);
        assert_eq!(answer(&RUNS, 50, 400, true), [(50, 50, 0)]);
    }
}
