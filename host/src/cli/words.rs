//! Small things about words: how they are split, compared and read as numbers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rbdkit_plugin_api::ConfigError;

/// How messages begin: `nbdkit` for a program that was installed under that name, so that scripts find what they look for.
pub fn program_name(argv0: Option<&OsStr>) -> &'static str {
    match argv0.and_then(|path| Path::new(path).file_name()) {
        Some(name) if name == "nbdkit" => "nbdkit",
        _ => "rbdkit",
    }
}

/// nbdkit's rule for what can stand before `=`: a letter, then letters, digits, `.`, `_` and `-`.
pub(super) fn is_key(key: &[u8]) -> bool {
    key.first().is_some_and(u8::is_ascii_alphabetic)
        && key.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Splits `key=value` at the first `=`. None if what stands before it is no key.
pub(super) fn split_parameter(word: &OsStr) -> Option<(String, OsString)> {
    let (key, value) = split_once(word, b'=')?;
    let key = is_key(key.as_bytes()).then(|| key.to_str())??;
    Some((key.to_string(), value))
}

/// Splits at the first `separator`.
pub(super) fn split_once(word: &OsStr, separator: u8) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec())))
}

/// A whole number as C writes it: decimal, `0x` hexadecimal or `0` octal.
pub(super) fn whole_number(option: &str, text: &OsStr, most: u64) -> Result<u64, ConfigError> {
    let lossy = text.to_string_lossy();
    let (digits, radix) = match lossy.as_ref() {
        hex if hex.starts_with("0x") || hex.starts_with("0X") => (&hex[2..], 16),
        octal if octal.len() > 1 && octal.starts_with('0') => (&octal[1..], 8),
        decimal => (decimal, 10),
    };
    let number = if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, radix).ok() };
    number
        .filter(|number| *number <= most)
        .ok_or_else(|| ConfigError::new(format!("{option}: '{lossy}' is not a whole number from 0 to {most}")))
}

/// The name that `given` is most likely a misspelling of, if any is close enough: one edit for every three letters, at least one.
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let within = (given.len() / 3).max(1).min(given.len());
    names
        .into_iter()
        .map(|name| (distance(given, name), name))
        .filter(|(distance, _)| *distance <= within)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters have to be inserted, removed, changed or swapped with their neighbour to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    // Longer words are no misspellings, and the work grows with the product of the lengths.
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // `rows[i][j]` is the distance of the first `i` letters of `a` to the first `j` of `b`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_recognised_as_nbdkit_does() {
        for (word, key) in
            [("a=b", Some("a")), ("cow-on.read_2=1", Some("cow-on.read_2")), ("a==b", Some("a")), ("a=", Some("a"))]
        {
            assert_eq!(split_parameter(OsStr::new(word)).map(|(key, _)| key).as_deref(), key, "{word}");
        }
        for word in ["", "a", "=b", "1a=b", "a b=c", "./a=b", "-a=b", "_a=b", "é=b"] {
            assert_eq!(split_parameter(OsStr::new(word)), None, "{word}");
        }
    }

    #[test]
    fn values_need_not_be_text() {
        let word = OsStr::from_bytes(b"file=\xff=x");
        assert_eq!(split_parameter(word).unwrap().1.as_bytes(), b"\xff=x");
    }

    #[test]
    fn numbers_are_written_as_in_c() {
        for (text, number) in [("0", 0), ("16", 16), ("0x1F", 31), ("017", 15)] {
            assert_eq!(whole_number("-t", OsStr::new(text), 100), Ok(number), "{text}");
        }
        for text in ["", "x", "-1", "+1", "0x", "0x-1", "08", "101", "1 "] {
            let message = whole_number("-t", OsStr::new(text), 100).unwrap_err().to_string();
            assert_eq!(message, format!("-t: '{text}' is not a whole number from 0 to 100"));
        }
    }

    #[test]
    fn near_misses_are_found_and_others_are_not() {
        assert_eq!(nearest("memroy", ["file", "memory", "null"]), Some("memory"));
        assert_eq!(nearest("cwo", ["cache", "cow"]), Some("cow"));
        assert_eq!(nearest("readahaed", ["readahead", "cow"]), Some("readahead"));
        assert_eq!(nearest("curl", ["file", "memory", "null"]), None);
        assert_eq!(nearest("", ["sh"]), None);
    }

    #[test]
    fn only_the_name_nbdkit_changes_how_messages_begin() {
        assert_eq!(program_name(Some(OsStr::new("/usr/bin/nbdkit"))), "nbdkit");
        assert_eq!(program_name(Some(OsStr::new("rbdkit"))), "rbdkit");
        assert_eq!(program_name(Some(OsStr::new("x y"))), "rbdkit");
        assert_eq!(program_name(None), "rbdkit");
    }
}
