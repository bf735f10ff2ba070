//! Whole numbers, sizes, booleans, durations and probabilities, as nbdkit's command line writes
//! them.
//!
//! The error of every function completes "key=value: ...".

/// The text without what C's functions for numbers skip: blanks and one plus sign.
fn without_start(text: &str) -> &str {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    text.strip_prefix('+').unwrap_or(text)
}

/// A whole number from 0 to `most`, as C writes it: decimal, hexadecimal after `0x`, or octal after
/// `0`.
pub fn parse_whole(text: &str, most: u64) -> Result<u64, String> {
    let text = without_start(text);
    let (digits, radix) = match text {
        hex if hex.starts_with("0x") || hex.starts_with("0X") => (&hex[2..], 16),
        octal if octal.len() > 1 && octal.starts_with('0') => (&octal[1..], 8),
        decimal => (decimal, 10),
    };
    let number = if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, radix).ok() };
    number.filter(|number| *number <= most).ok_or_else(|| format!("is not a whole number from 0 to {most}"))
}

/// A size in bytes: decimal digits and an optional suffix, `b` for bytes, `s` for sectors of 512,
/// or `k M G T P E` for powers of 1024, in either case. The largest is 2^63 - 1.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "is not a size: digits and one of b, s, k, M, G, T, P, E, for example 512, 64k or 1G".to_string();
    let text = without_start(text);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let scale: u64 = match &text[digits..] {
        "" | "b" | "B" => 1,
        "s" | "S" => 512,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return Err(wrong()),
    };
    if digits == 0 {
        return Err(wrong());
    }
    text[..digits]
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale))
        .filter(|n| *n <= i64::MAX as u64)
        .ok_or_else(|| "is larger than 2^63 - 1 bytes".to_string())
}

/// A number of bytes as a size, with the largest unit that needs no fraction.
pub fn format_size(bytes: u64) -> String {
    for (suffix, scale) in [("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{suffix}", bytes / scale);
        }
    }
    bytes.to_string()
}

/// A boolean: `1 true t yes y on` or `0 false f no n off`, in any case.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err("is neither true (1, true, yes, on) nor false (0, false, no, off)".to_string()),
    }
}

/// A duration in nanoseconds: a decimal number, or a whole one as in [`parse_whole`], with `ns`,
/// `us`, `ms`, `s` (also without a unit: seconds), `m` or `h`.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong =
        || "is not a duration: a number and ns, us, ms, s (the default), m or h, for example 50ms or 1.5".to_string();
    let number_end = match text.as_bytes() {
        [b'0', b'x' | b'X', digits @ ..] => 2 + digits.iter().take_while(|b| b.is_ascii_hexdigit()).count(),
        digits => digits.iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count(),
    };
    let scale: u64 = match &text[number_end..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" | "MS" => 1_000_000,
        "" | "s" | "S" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = text[..number_end].split_once('.').unwrap_or((&text[..number_end], ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return Err(wrong());
    }
    let too_long = || "is too long a duration".to_string();
    let whole = match whole {
        "" => 0,
        whole if number_end == whole.len() => parse_whole(whole, u64::MAX)?,
        whole => whole.parse::<u64>().map_err(|_| too_long())?,
    };
    let whole = whole.checked_mul(scale).ok_or_else(too_long)?;
    let fraction = match fraction {
        "" => 0,
        digits => {
            let value: u128 = digits.parse().map_err(|_| wrong())?;
            (value * u128::from(scale) / 10u128.pow(digits.len() as u32)) as u64
        }
    };
    whole.checked_add(fraction).ok_or_else(too_long)
}

/// A probability as parts of 10^9: `12%`, `0.12`, or `1:1000`.
pub fn parse_probability(text: &str) -> Result<u32, String> {
    let wrong = || "is not a chance: a percentage (10%), a number from 0 to 1 (0.1) or a ratio (1:10)".to_string();
    let number = |text: &str| -> Option<f64> {
        let plain = !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
        plain.then(|| text.parse::<f64>().ok()).flatten().filter(|n| n.is_finite() && *n >= 0.0)
    };
    let value = if let Some(percent) = text.strip_suffix('%') {
        number(percent).ok_or_else(wrong)? / 100.0
    } else if let Some((hits, tries)) = text.split_once(':') {
        let (hits, tries) = (number(hits).ok_or_else(wrong)?, number(tries).ok_or_else(wrong)?);
        if tries == 0.0 {
            return Err(wrong());
        }
        hits / tries
    } else {
        number(text).ok_or_else(wrong)?
    };
    if value > 1.0 {
        return Err("is a chance of more than 100%".to_string());
    }
    Ok((value * 1e9).round() as u32)
}
