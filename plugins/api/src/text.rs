//! Makes text from other programs and peers fit for the log.

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

/// Untrusted text as one line. Control characters are escaped, so that the text cannot command a
/// terminal.
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
