//! Numbers and ranges as nbdkit's filters write them.

use std::ops::Range;

/// The message about a text that is not a number.
fn not_a_number(text: &str) -> String {
    format!("'{text}' is not a number of bytes, for example 512, 0x200 or 64k")
}

/// Digits without a sign.
fn digits(text: &str, radix: u32) -> Option<u64> {
    if text.starts_with(['+', '-']) { None } else { u64::from_str_radix(text, radix).ok() }
}

/// A number of bytes: decimal, hexadecimal after `0x`, or octal after `0`. A decimal number may end
/// with a unit, as in [`parse_size`].
///
/// # Errors
/// What is wrong, as the end of a message.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let other = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => Some(digits(hex, 16)),
        None if text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits(&text[1..], 8))
        }
        None => None,
    };
    match other {
        Some(number) => number.ok_or_else(|| not_a_number(text)),
        None => parse_size(text),
    }
}

/// A size in bytes: a decimal number and perhaps a unit, `b`, `s` (512 bytes), `k`, `M`, `G`, `T`,
/// `P` or `E` in either case.
///
/// # Errors
/// What is wrong, as the end of a message.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, scale): (&str, u64) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let scale = match unit.to_ascii_lowercase() {
                'b' => 1,
                's' => 512,
                'k' => 1 << 10,
                'm' => 1 << 20,
                'g' => 1 << 30,
                't' => 1 << 40,
                'p' => 1 << 50,
                'e' => 1 << 60,
                _ => return Err(not_a_number(text)),
            };
            (&text[..at], scale)
        }
        _ => (text, 1),
    };
    digits(number, 10).and_then(|number| number.checked_mul(scale)).ok_or_else(|| not_a_number(text))
}

/// A range `START-END`. Both bytes belong to it. START is 0 if it is left out, and END is the end
/// of every disk.
///
/// # Errors
/// What is wrong, as the end of a message.
pub fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let Some((first, last)) = text.split_once('-') else {
        return Err("is not a range, START-END".into());
    };
    let start = if first.is_empty() { 0 } else { parse_number(first)? };
    let end = match last {
        "" => u64::MAX,
        last => parse_number(last)?.checked_add(1).ok_or("ends beyond every disk")?,
    };
    match start < end {
        true => Ok(start..end),
        false => Err("ends before it starts".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_hexadecimal_or_octal_and_may_have_a_unit() {
        let cases = [("0", 0), ("512", 512), ("0x1F", 31), ("017", 15), ("64k", 65536), ("1M", 1 << 20), ("3s", 1536)];
        for (text, number) in cases {
            assert_eq!(parse_number(text), Ok(number), "{text}");
        }
        for text in ["", "k", "x", "08", "0x", "0x-1", "+1", "-1", "1kk", "1 ", "99999999999999999999", "99999999E"] {
            assert!(parse_number(text).is_err(), "{text}");
        }
        assert!(parse_number("é").is_err());
        assert_eq!((parse_size("010"), parse_number("010")), (Ok(10), Ok(8)));
        assert!(parse_size("0x10").is_err());
    }

    #[test]
    fn a_range_has_its_last_byte_and_may_be_open() {
        assert_eq!(parse_range("0-0x1bd"), Ok(0..0x1be));
        assert_eq!(parse_range("5-5"), Ok(5..6));
        assert_eq!(parse_range("-9"), Ok(0..10));
        assert_eq!(parse_range("9-"), Ok(9..u64::MAX));
        assert_eq!(parse_range("-"), Ok(0..u64::MAX));
        assert_eq!(parse_range("10-9"), Err("ends before it starts".into()));
        assert_eq!(parse_range("10"), Err("is not a range, START-END".into()));
        for text in ["", "a-b", "1-2-3", "0-18446744073709551615"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}
