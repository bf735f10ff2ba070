//! Makes text from other programs and peers safe for the log.

use std::fmt;

/// An error of the operating system without the number that Rust adds.
#[must_use]
pub fn plain(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Untrusted text as one line. Control characters are escaped, so that the text cannot control a
/// terminal, and so are marks that hide text.
#[must_use]
pub fn one_line(text: &str) -> String {
    one_line_within(text, usize::MAX)
}

/// [`one_line`], cut to `longest` bytes. "..." follows what was cut.
#[must_use]
pub fn one_line_within(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len().min(longest));
    for character in text.trim_end_matches('\n').chars() {
        if line.len() + character.len_utf8() > longest {
            line.push_str("...");
            break;
        }
        // Marks of the writing direction can hide text just as control characters can.
        let hides = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match character.is_control() || hides {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_pretend_to_be_another() {
        assert_eq!(one_line_within("a\nrbdkit: error: b\u{1b}[2J\n", 100), "a\\nrbdkit: error: b\\u{1b}[2J");
        assert_eq!(one_line_within("abcdef", 3), "abc...");
        assert_eq!(one_line_within("äöü", 3), "ä...");
        assert_eq!(one_line("a\u{202e}b"), "a\\u{202e}b");
    }
}
