//! A list of extents as bytes, to be kept where all instances find it, and the part of it that answers a question.

/// A run of bytes: where it ends, and its type as two bits (hole, zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// One past its last byte.
    pub end: u64,
    /// Bit 0: a hole. Bit 1: reads as zero.
    pub kind: u8,
}

/// Runs that are kept: 64 KiB of them.
pub const MOST: usize = 4096;

/// Bytes of a run.
const BYTES: usize = 16;

/// The runs as bytes; at most [`MOST`].
pub fn pack(runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(runs.len().min(MOST) * BYTES);
    for run in runs.iter().take(MOST) {
        bytes.extend_from_slice(&run.end.to_le_bytes());
        bytes.extend_from_slice(&u64::from(run.kind).to_le_bytes());
    }
    bytes
}

/// How many bytes `count` runs take.
pub fn size(count: u64) -> u32 {
    count.min(MOST as u64) as u32 * BYTES as u32
}

/// What [`pack`] made.
pub fn unpack(bytes: &[u8]) -> Vec<Run> {
    let (runs, _) = bytes.as_chunks::<BYTES>();
    runs.iter()
        .map(|run| {
            let (end, kind) = run.split_at(8);
            let mut word = [0; 8];
            word.copy_from_slice(end);
            Run { end: u64::from_le_bytes(word), kind: kind[0] & 3 }
        })
        .collect()
}

/// Those runs that say something of `offset..end`, from `offset` on: offset, length and kind. `runs` cover `offset` and ascend.
pub fn answer(runs: &[Run], offset: u64, end: u64, one: bool) -> Vec<(u64, u64, u8)> {
    let mut from = offset;
    let mut list = Vec::new();
    for run in runs.iter().filter(|run| run.end > offset) {
        if from >= end || one && !list.is_empty() {
            break;
        }
        let to = run.end.min(end);
        if to > from {
            list.push((from, to - from, run.kind));
            from = to;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: [Run; 3] = [Run { end: 100, kind: 0 }, Run { end: 300, kind: 3 }, Run { end: 500, kind: 2 }];

    #[test]
    fn runs_are_the_same_after_they_were_bytes() {
        assert_eq!(unpack(&pack(&RUNS)), RUNS);
        assert_eq!(pack(&RUNS).len() as u32, size(3));
        assert_eq!(pack(&[RUNS[0]; MOST + 1]).len() as u32, size(MOST as u64 + 1));
        assert_eq!(unpack(&[1; 17]).len(), 1);
    }

    #[test]
    fn an_answer_begins_and_ends_where_the_question_does() {
        assert_eq!(answer(&RUNS, 50, 400, false), [(50, 50, 0), (100, 200, 3), (300, 100, 2)]);
        assert_eq!(answer(&RUNS, 100, 300, false), [(100, 200, 3)]);
        assert_eq!(answer(&RUNS, 299, 1000, false), [(299, 1, 3), (300, 200, 2)]);
        assert_eq!(answer(&RUNS, 50, 400, true), [(50, 50, 0)]);
    }
}
