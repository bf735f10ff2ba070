//! `nbdkit_parse_*` without pointers: numbers, sizes, truth values, probabilities and delays.

use rbdkit_plugin_api::units;

/// A whole number as C's `strtol` reads it with base 0: blanks, a sign, decimal, `0x` or `0`.
/// Returns the part of the message after the text, for example "trailing garbage".
pub(super) fn whole(text: &str, least: i128, most: i128) -> Result<i128, String> {
    let rest = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    if rest.is_empty() {
        return Err("empty string".into());
    }
    let (negative, digits) = match rest.as_bytes()[0] {
        b'-' => (true, &rest[1..]),
        b'+' => (false, &rest[1..]),
        _ => (false, rest),
    };
    if negative && least == 0 {
        return Err("negative numbers are not allowed".into());
    }
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err("trailing garbage".into());
    }
    let too_large = || "Numerical result out of range".to_string();
    let number = i128::from_str_radix(digits, radix).map_err(|_| too_large())?;
    let number = if negative { -number } else { number };
    if (least..=most).contains(&number) { Ok(number) } else { Err(too_large()) }
}

/// Bytes, at most 2^63 - 1.
pub(super) fn size(text: &str) -> Result<i64, String> {
    let size = units::parse_size(text).map_err(|wrong| format!("could not parse size string ({text}): {wrong}"))?;
    i64::try_from(size).map_err(|_| format!("could not parse size string ({text}): it is too large"))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    units::parse_bool(text).map_err(|_| format!("could not decipher boolean ({text})"))
}

/// `0.1`, `10%` or `1:10`; at least 0. nbdkit allows more than 1.
pub(super) fn probability(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    let value = match (text.split_once(':'), text.strip_suffix('%')) {
        (Some((part, whole)), _) => match (number(part), number(whole)) {
            (Some(part), Some(whole)) if whole != 0.0 => Some(part / whole),
            (Some(0.0), Some(_)) => Some(0.0),
            _ => None,
        },
        (None, Some(percent)) => number(percent).map(|percent| percent / 100.0),
        (None, None) => number(text),
    };
    value.ok_or_else(|| format!("could not parse '{text}' as a probability"))
}

/// Seconds and nanoseconds.
pub(super) fn delay(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("could not parse '{text}' as a delay");
    let plain = text.replace(['μ', 'µ'], "u");
    // nbdkit has neither minutes nor hours.
    if plain.ends_with(['m', 'h']) {
        return Err(wrong());
    }
    let nanoseconds = units::parse_duration(&plain).map_err(|_| wrong())?;
    let seconds = u32::try_from(nanoseconds / 1_000_000_000).ok().filter(|seconds| *seconds <= i32::MAX as u32);
    Ok((seconds.ok_or_else(wrong)?, (nanoseconds % 1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let int = |text| whole(text, i32::MIN.into(), i32::MAX.into());
        for (text, number) in [("0", 0), ("-1", -1), ("+7", 7), (" 0x1F", 31), ("010", 8), ("-0x80000000", -1 << 31)] {
            assert_eq!(int(text), Ok(number), "{text}");
        }
        assert_eq!(int("").unwrap_err(), "empty string");
        assert_eq!(int("08").unwrap_err(), "trailing garbage");
        assert_eq!(int("1 ").unwrap_err(), "trailing garbage");
        assert_eq!(int("2147483648").unwrap_err(), "Numerical result out of range");
        assert_eq!(whole("-0", 0, 255).unwrap_err(), "negative numbers are not allowed");
        assert_eq!(whole("18446744073709551615", 0, u64::MAX.into()), Ok(u64::MAX.into()));
    }

    #[test]
    fn probabilities_and_delays_are_read() {
        assert_eq!(probability("1:4"), Ok(0.25));
        assert_eq!(probability("50%"), Ok(0.5));
        assert_eq!(probability("1.5"), Ok(1.5));
        assert_eq!(probability("0:0"), Ok(0.0));
        for text in ["", "-1", "1:0", "x", "nan", "inf", "1:"] {
            assert!(probability(text).is_err(), "{text}");
        }
        assert_eq!(delay("1.5"), Ok((1, 500_000_000)));
        assert_eq!(delay("120μs"), Ok((0, 120_000)));
        assert_eq!(delay("3ns"), Ok((0, 3)));
        assert!(delay("3m").is_err() && delay("-1").is_err() && delay("").is_err());
    }
}
