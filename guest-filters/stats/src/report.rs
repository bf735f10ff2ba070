//! The report, as nbdkit lays it out.

use std::fmt::Write;

/// What happened to one operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpSums {
    /// What the report calls the operation.
    pub name: &'static str,
    /// How often it succeeded.
    pub ops: u64,
    /// Its bytes.
    pub bytes: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// The sizes of its requests. Empty if they are not counted.
    pub sizes: Vec<SizeGroup>,
}

/// The requests of an operation whose sizes have as many bits.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeGroup {
    /// The size is from 2^bits to 2^(bits + 1) - 1.
    pub bits: u32,
    /// How many requests there were.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many zero bits their offsets end in, ascending, and how many requests have exactly so
    /// many. The offset 0 is aligned to everything: [`ZERO_OFFSET`].
    pub alignments: Vec<(u32, u64)>,
}

/// The alignment of the offset 0.
pub const ZERO_OFFSET: u32 = 64;

/// The operations of the line "total". Requests for caching have never been among them.
const NOT_IN_TOTAL: &str = "cache";

/// The operations whose bytes are not in the line "total": none of them moves data.
const NO_DATA: [&str; 2] = ["extents", "cache"];

/// A report. `elapsed` is the time since the start, in nanoseconds; `threshold` the percentage of
/// requests whose sizes are shown.
pub fn report(elapsed: u64, threshold: u64, operations: &[OpSums]) -> String {
    let in_total = operations.iter().filter(|sums| sums.name != NOT_IN_TOTAL);
    let ops: u64 = in_total.map(|sums| sums.ops).sum();
    let with_data = operations.iter().filter(|sums| !NO_DATA.contains(&sums.name));
    let bytes = with_data.fold(0_u64, |sum, sums| sum.saturating_add(sums.bytes));
    let mut text = format!("total: {ops} ops, {} s, {}, {}/s\n", seconds(elapsed), size(bytes), rate(bytes, elapsed));
    for sums in operations.iter().filter(|sums| sums.ops > 0) {
        let OpSums { name, ops, bytes, ns, sizes } = sums;
        let (of_op, of_total) = (rate(*bytes, *ns), rate(*bytes, elapsed));
        let _ =
            writeln!(text, "{name}: {ops} ops, {} s, {}, {of_op}/s op, {of_total}/s total", seconds(*ns), size(*bytes));
        if threshold > 0 && !sizes.is_empty() {
            breakdown(&mut text, threshold, sizes);
            text.push('\n');
        }
    }
    text
}

fn breakdown(text: &mut String, threshold: u64, sizes: &[SizeGroup]) {
    text.push_str("  Request size and alignment breakdown:\n");
    let mut groups: Vec<&SizeGroup> = sizes.iter().collect();
    groups.sort_by(|a, b| b.ops.cmp(&a.ops).then(a.bits.cmp(&b.bits)));
    let all: u64 = groups.iter().map(|group| group.ops).sum();
    let wanted = (u128::from(all) * u128::from(threshold) / 100) as u64;
    let mut shown = 0;
    let mut groups = groups.into_iter();
    while shown < wanted
        && let Some(group) = groups.next()
    {
        let SizeGroup { bits, ops, bytes, alignments } = group;
        let _ = writeln!(text, "    {bits:2} bits: {:4.1}% ({ops} reqs, {} total)", percent(*ops, all), size(*bytes));
        let mut at_least = alignments.iter().map(|(_, count)| count).sum::<u64>();
        for (alignment, count) in alignments.iter().filter(|(alignment, _)| *alignment != ZERO_OFFSET) {
            let part = percent(at_least, *ops);
            let _ = writeln!(text, "         {alignment:2} bit aligned: {part:5.1}% ({at_least})");
            at_least -= count;
        }
        shown += ops;
    }
    let (ops, bytes) =
        groups.fold((0, 0_u64), |(ops, bytes), group| (ops + group.ops, bytes.saturating_add(group.bytes)));
    if ops > 0 {
        let _ = writeln!(text, "    other sizes: {:4.1}% ({ops} reqs, {} total)", percent(ops, all), size(bytes));
    }
}

fn percent(part: u64, all: u64) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}

fn seconds(ns: u64) -> String {
    let us = ns / 1000;
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// With the largest unit up to GiB.
fn size(bytes: u64) -> String {
    for (unit, bits) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << bits {
            return format!("{:.2} {unit}", bytes as f64 / (1_u64 << bits) as f64);
        }
    }
    format!("{bytes} bytes")
}

/// Bytes in a second. Times are counted in microseconds: below one, there is no rate.
fn rate(bytes: u64, ns: u64) -> String {
    match ns / 1000 {
        0 => "(n/a)".to_string(),
        us => size((bytes as f64 / us as f64 * 1e6) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(bits: u32, size: u64, alignments: &[(u32, u64)]) -> SizeGroup {
        let ops = alignments.iter().map(|(_, count)| count).sum();
        SizeGroup { bits, ops, bytes: ops * size, alignments: alignments.to_vec() }
    }

    fn sums(name: &'static str, ns: u64, sizes: Vec<SizeGroup>) -> OpSums {
        let ops = sizes.iter().map(|group| group.ops).sum();
        let bytes = sizes.iter().map(|group| group.bytes).sum();
        OpSums { name, ops, bytes, ns, sizes }
    }

    #[test]
    fn a_report_has_the_lines_and_the_units_of_nbdkit() {
        let read = sums(
            "read",
            11_000,
            vec![
                group(13, 8192, &[(13, 2), (14, 1), (ZERO_OFFSET, 1)]),
                group(9, 512, &[(0, 1)]),
                group(18, 262_144, &[(ZERO_OFFSET, 1)]),
            ],
        );
        let flush = OpSums { name: "flush", ops: 1, ..OpSums::default() };
        let cache = OpSums { name: "cache", ops: 3, bytes: 4096, ..OpSums::default() };
        let text = report(546_823_000, 95, &[read, cache, flush]);
        assert_eq!(
            text,
            "\
total: 7 ops, 0.546823 s, 288.50 KiB, 527.59 KiB/s
read: 6 ops, 0.000011 s, 288.50 KiB, 25.01 GiB/s op, 527.59 KiB/s total
  Request size and alignment breakdown:
    13 bits: 66.7% (4 reqs, 32.00 KiB total)
         13 bit aligned: 100.0% (4)
         14 bit aligned:  50.0% (2)
     9 bits: 16.7% (1 reqs, 512 bytes total)
          0 bit aligned: 100.0% (1)
    other sizes: 16.7% (1 reqs, 256.00 KiB total)

cache: 3 ops, 0.000000 s, 4.00 KiB, (n/a)/s op, 7.31 KiB/s total
flush: 1 ops, 0.000000 s, 0 bytes, (n/a)/s op, 0 bytes/s total
"
        );
    }

    #[test]
    fn sizes_are_shown_until_the_threshold_is_reached() {
        let reads = || vec![group(9, 512, &[(9, 20)]), group(10, 1024, &[(9, 1)])];
        let shown = |threshold: u64, sizes: Vec<SizeGroup>| {
            let text = report(1_000_000, threshold, &[sums("read", 1000, sizes)]);
            text.lines().filter(|line| line.contains("bits:") || line.contains("other")).count()
        };
        assert_eq!((shown(95, reads()), shown(100, reads()), shown(0, reads())), (2, 2, 0));
        let text = report(1_000_000, 95, &[sums("read", 1000, reads())]);
        assert!(text.contains("    other sizes:  4.8% (1 reqs, 1.00 KiB total)\n"), "{text}");
        assert!(!report(1_000_000, 100, &[sums("read", 1000, reads())]).contains("other"), "all are shown");
        // The share of one request is below the threshold.
        let text = report(1_000_000, 95, &[sums("trim", 1000, vec![group(12, 4096, &[(12, 1)])])]);
        assert!(text.contains("    other sizes: 100.0% (1 reqs, 4.00 KiB total)\n"), "{text}");
    }

    #[test]
    fn a_size_has_the_largest_unit_up_to_gib() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (2_228_224, "2.12 MiB"),
            (25 << 40, "25600.00 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((rate(1, 999), rate(0, 1000)), ("(n/a)".into(), "0 bytes".into()));
    }
}
