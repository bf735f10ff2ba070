//! Which parts of the disk are protected.

use rbdkit_filter_shared::numbers::parse_range;
use rbdkit_filter_shared::segments::{Segment, Segments};

/// The protected ranges. The value of a segment is the number of the parameter that protects it.
///
/// Each text is `START-END`, or `~START-END` for everything but that range.
///
/// # Errors
/// One line for the user.
pub fn parse(texts: &[String]) -> Result<Segments<u32>, String> {
    let mut list = Vec::new();
    for (value, text) in (0..).zip(texts) {
        let wrong = |wrong| format!("protect={text}: {wrong}");
        match text.strip_prefix('~') {
            Some(range) => {
                let range = parse_range(range).map_err(wrong)?;
                list.push(Segment { start: 0, end: range.start, value });
                list.push(Segment { start: range.end, end: u64::MAX, value });
            }
            None => {
                let range = parse_range(text).map_err(wrong)?;
                list.push(Segment { start: range.start, end: range.end, value });
            }
        }
    }
    Ok(Segments::first_counts(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Vec<(u64, u64, u32)> {
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        parse(&texts).unwrap().iter().map(|segment| (segment.start, segment.end, segment.value)).collect()
    }

    #[test]
    fn ranges_have_their_last_byte_and_a_tilde_means_all_others() {
        assert_eq!(parsed(&["0-0x1bd"]), [(0, 0x1be, 0)]);
        assert_eq!(parsed(&["~10-19"]), [(0, 10, 0), (20, u64::MAX, 0)]);
        assert_eq!(parsed(&["~-"]), []);
        assert_eq!(parsed(&["5-9", "0-7"]), [(0, 5, 1), (5, 10, 0)]);
        assert_eq!(parsed(&[]), []);
    }

    #[test]
    fn a_wrong_range_is_named() {
        let wrong = |text: &str| parse(&[text.to_string()]).unwrap_err();
        assert_eq!(wrong("10-0"), "protect=10-0: ends before it starts");
        assert_eq!(wrong("~5"), "protect=~5: is not a range, START-END");
        assert_eq!(wrong("0-x"), "protect=0-x: 'x' is not a number of bytes, for example 512, 0x200 or 64k");
    }
}
