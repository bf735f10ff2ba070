//! Header lines that the user or a script gives.

use crate::secret::Secret;

/// Header lines that may go anywhere: they say what the client understands, not who it is.
const PUBLIC: &[&str] = &["accept", "accept-encoding", "accept-language", "cache-control", "pragma", "user-agent"];

/// A header line as `header=` has it: `Name: value`, `Name:` or `Name;`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    text: Secret,
    /// In lower case.
    name: String,
    /// It has no value: it removes a header or sends an empty one.
    is_empty: bool,
}

impl Line {
    /// Reads a line. None if it is no header line.
    pub(crate) fn new(text: Secret) -> Option<Line> {
        let bytes = text.bytes();
        let end = bytes.iter().position(|byte| matches!(byte, b':' | b';'))?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let is_empty = bytes[end + 1..].iter().all(u8::is_ascii_whitespace);
        let name = name.to_ascii_lowercase();
        Some(Line { text, name, is_empty })
    }

    pub(crate) fn text(&self) -> &Secret {
        &self.text
    }

    /// In lower case.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it says nothing secret.
    pub(crate) fn is_public(&self) -> bool {
        self.is_empty || PUBLIC.contains(&self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<Line> {
        Line::new(Secret::new(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_header_line_has_a_name() {
        for text in ["", ":", ": x", "no line", "a b: c", " x: y", "\u{fc}: x"] {
            assert_eq!(line(text), None, "{text}");
        }
        assert!(line("X:").unwrap().is_empty && line("X;").unwrap().is_empty && !line("X: y").unwrap().is_empty);
    }
}
