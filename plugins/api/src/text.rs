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

/// Untrusted text as one line. Characters that control a terminal or that nobody sees are escaped
/// ([`is_hidden`]).
#[must_use]
pub fn one_line(text: &str) -> String {
    one_line_within(text, usize::MAX)
}

/// [`one_line`], cut to `longest` bytes. "..." follows what was cut.
#[must_use]
pub fn one_line_within(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len().min(longest));
    for character in text.trim_end_matches('\n').chars() {
        let before = line.len();
        match is_hidden(character) {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
        if line.len() > longest {
            line.truncate(before);
            line.push_str("...");
            break;
        }
    }
    line
}

/// Untrusted text between single quotes, as part of a line: a name or a value. Like [`one_line`],
/// and quotes and backslashes in it are escaped, so that it cannot pretend to end.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for character in text.chars() {
        match is_hidden(character) || matches!(character, '\'' | '\\') {
            true => quoted.extend(character.escape_default()),
            false => quoted.push(character),
        }
    }
    quoted.push('\'');
    quoted
}

/// Whether a character is invisible or changes how the characters around it are shown: control
/// characters, line and paragraph separators, marks of the writing direction, and what Unicode
/// calls format characters and default ignorable code points. With them a text can hide a part of
/// itself or look like another text.
#[must_use]
pub fn is_hidden(character: char) -> bool {
    const HIDDEN: [(u32, u32); 26] = [
        (0x00ad, 0x00ad),
        (0x034f, 0x034f),
        (0x0600, 0x0605),
        (0x061c, 0x061c),
        (0x06dd, 0x06dd),
        (0x070f, 0x070f),
        (0x0890, 0x0891),
        (0x08e2, 0x08e2),
        (0x115f, 0x1160),
        (0x17b4, 0x17b5),
        (0x180b, 0x180f),
        (0x200b, 0x200f),
        (0x2028, 0x202e),
        (0x2060, 0x206f),
        (0x2800, 0x2800),
        (0x3164, 0x3164),
        (0xfe00, 0xfe0f),
        (0xfeff, 0xfeff),
        (0xffa0, 0xffa0),
        (0xfff0, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0000, 0xe0fff),
    ];
    let code = u32::from(character);
    if code < 0xad {
        return character.is_control();
    }
    let after = HIDDEN.partition_point(|(first, _)| *first <= code);
    after > 0 && code <= HIDDEN[after - 1].1
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
        assert_eq!(quoted("it's\\\n"), "'it\\'s\\\\\\n'");
    }

    #[test]
    fn every_hidden_character_is_escaped_and_no_other() {
        let hidden = [
            0x00, 0x1b, 0x7f, 0x85, 0x9b, 0xad, 0x061c, 0x180e, 0x200b, 0x200e, 0x2028, 0x202e, 0x2060, 0x2066, 0x3164,
            0xfeff, 0xfff9, 0xe0001, 0xe0041, 0xe01ef,
        ];
        for character in hidden.map(|code| char::from_u32(code).unwrap()) {
            assert!(is_hidden(character), "{character:?}");
            assert!(one_line(&format!("a{character}b")).is_ascii(), "{character:?}");
            assert!(quoted(&character.to_string()).is_ascii(), "{character:?}");
        }
        let shown = ['a', ' ', '~', '\u{a0}', 'é', '\u{301}', 'ж', '中', '€', '😀', '\u{e1000}', '\u{10ffff}'];
        for character in shown {
            assert!(!is_hidden(character), "{character:?}");
        }
    }

    #[test]
    fn escapes_count_for_the_length_of_a_line() {
        let line = one_line_within(&"\u{1}".repeat(1000), 100);
        assert!(line.len() <= 103 && line.ends_with("..."), "{line}");
    }
}
