//! Texts of others, before they are shown.

use std::fmt;

/// An operating system's error without the number that Rust adds.
#[must_use]
pub fn plain(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// A text that somebody else may have had a say in as one line, without what could command a terminal: control characters are escaped.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}
