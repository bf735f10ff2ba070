//! The keys of the sums: one number for an operation and what is counted of it.

use crate::report::{OpSums, SizeGroup, ZERO_OFFSET};

/// An operation, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Trim.
    Trim,
    /// Zero.
    Zero,
    /// Extents.
    Extents,
    /// Cache.
    Cache,
    /// Flush.
    Flush,
}

/// All operations, with their names in the report.
const OPS: [(Op, &str); 7] = [
    (Op::Read, "read"),
    (Op::Write, "write"),
    (Op::Trim, "trim"),
    (Op::Zero, "zero"),
    (Op::Extents, "extents"),
    (Op::Cache, "cache"),
    (Op::Flush, "flush"),
];

/// What is counted of an operation: the second byte of a key.
const COUNT: u64 = 0;
const BYTES: u64 = 1;
const TIME: u64 = 2;
/// The bytes of the requests of one size, whose bits are in the third byte.
const SIZE_BYTES: u64 = 3;
/// The requests of one size and one alignment, which is in the fourth byte.
const ALIGNED: u64 = 4;

/// The operation is in the lowest byte.
fn key(op: Op, what: u64, bits: u32, alignment: u32) -> u64 {
    op as u64 | what << 8 | u64::from(bits) << 16 | u64::from(alignment) << 24
}

/// The keys that are always needed. They are taken first, so that a client that uses many sizes and
/// alignments cannot take their places.
pub fn reserved() -> Vec<(u64, u64)> {
    let of = |(op, _): (Op, &str)| [COUNT, BYTES, TIME].map(|what| (key(op, what, 0, 0), 0));
    OPS.into_iter().flat_map(of).collect()
}

/// What a request adds that has succeeded. Its size is counted if `sizes` says so.
pub fn additions(op: Op, offset: u64, length: u64, ns: u64, sizes: bool) -> Vec<(u64, u64)> {
    let mut all = vec![(key(op, COUNT, 0, 0), 1), (key(op, BYTES, 0, 0), length), (key(op, TIME, 0, 0), ns)];
    if sizes && length > 0 {
        let alignment = if offset == 0 { ZERO_OFFSET } else { offset.trailing_zeros() };
        let bits = length.ilog2();
        all.extend([(key(op, SIZE_BYTES, bits, 0), length), (key(op, ALIGNED, bits, alignment), 1)]);
    }
    all
}

/// The sums of each operation. `all` are the keys and their sums, ascending.
pub fn sums(all: &[(u64, u64)]) -> Vec<OpSums> {
    let of = |op: Op, what: u64| {
        let wanted = move |(key, _): &&(u64, u64)| key & 0xff == op as u64 && key >> 8 & 0xff == what;
        all.iter().filter(wanted).map(|(key, sum)| ((key >> 16 & 0xff) as u32, (key >> 24) as u32, *sum))
    };
    let one = |op: Op, what: u64| of(op, what).map(|(_, _, sum)| sum).next().unwrap_or(0);
    OPS.into_iter()
        .map(|(op, name)| {
            let mut sizes: Vec<SizeGroup> = Vec::new();
            for (bits, _, bytes) in of(op, SIZE_BYTES) {
                let mut alignments: Vec<(u32, u64)> = Vec::new();
                alignments.extend(of(op, ALIGNED).filter(|found| found.0 == bits).map(|found| (found.1, found.2)));
                let ops = alignments.iter().map(|(_, count)| count).sum();
                sizes.push(SizeGroup { bits, ops, bytes, alignments });
            }
            OpSums { name, ops: one(op, COUNT), bytes: one(op, BYTES), ns: one(op, TIME), sizes }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_requests_add_comes_back_as_sums() {
        let mut counted = BTreeMap::new();
        let mut requests = vec![(Op::Read, 0, 512, 5), (Op::Read, 512, 700, 6), (Op::Read, 1 << 40, 512, 7)];
        requests.extend([(Op::Flush, 0, 0, 8), (Op::Zero, 3, u64::MAX >> 1, 9)]);
        for (op, offset, length, ns) in requests {
            for (key, delta) in additions(op, offset, length, ns, true) {
                *counted.entry(key).or_insert(0) += delta;
            }
        }
        let all: Vec<(u64, u64)> = counted.into_iter().collect();
        let sums = sums(&all);
        assert_eq!((sums[0].ops, sums[0].bytes, sums[0].ns), (3, 1724, 18));
        let alignments = vec![(9, 1), (40, 1), (ZERO_OFFSET, 1)];
        assert_eq!(sums[0].sizes, [SizeGroup { bits: 9, ops: 3, bytes: 1724, alignments }]);
        assert_eq!((sums[6].name, sums[6].ops, sums[6].sizes.len()), ("flush", 1, 0));
        assert_eq!((sums[3].sizes[0].bits, &sums[3].sizes[0].alignments[..]), (62, &[(0, 1)][..]));
        assert_eq!(sums[1], OpSums { name: "write", ..OpSums::default() });
    }

    #[test]
    fn sizes_are_left_out_if_nobody_wants_them() {
        assert_eq!(additions(Op::Read, 0, 512, 1, false).len(), 3);
        let mut keys: Vec<u64> = reserved().iter().map(|(key, _)| *key).collect();
        assert!(additions(Op::Cache, 0, 1, 1, false).iter().all(|(key, _)| keys.contains(key)));
        keys.dedup();
        assert_eq!(keys.len(), 21);
    }
}
