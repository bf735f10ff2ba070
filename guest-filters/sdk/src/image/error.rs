//! Why an image cannot be read.

use std::fmt;

use crate::Errno;

/// Why an image cannot be opened, or a part of it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The layer below failed, or the host did. The host has logged why.
    Failed(Errno),
    /// The image is wrong, or has what the decoder does not support. One line for the log: what is
    /// wrong, and what would be right.
    Image(String),
}

impl Error {
    /// An error of the image.
    pub fn image(line: impl Into<String>) -> Error {
        Error::Image(line.into())
    }

    /// Logs the line, if there is one, and returns the error for the request. That is EIO for an
    /// image that is wrong.
    pub fn log(self) -> Errno {
        match self {
            Error::Failed(errno) => errno,
            Error::Image(line) => {
                crate::error!("{line}");
                Errno::Eio
            }
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::Failed(errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(errno) => write!(f, "the layer below failed: {}", errno.name()),
            Error::Image(line) => f.write_str(line),
        }
    }
}

impl std::error::Error for Error {}

/// Text of an image for a message: in quotes, at most 200 characters, with control characters
/// escaped. Bytes that are not UTF-8 are replaced.
pub fn quoted(text: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = &text[..text.len().min(4 * MOST)];
    let text_cut = String::from_utf8_lossy(cut);
    let mut shown = String::from("'");
    for (n, c) in text_cut.chars().enumerate() {
        if n == MOST {
            shown.push_str("...");
            break;
        }
        match c {
            '\'' => shown.push_str("\\'"),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown.push('\'');
    shown
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn text_of_an_image_is_short_and_has_no_control_characters() {
        assert_eq!(quoted(b"base.img"), "'base.img'");
        assert_eq!(quoted(b"a'\n\x1b[1m\xff"), "'a\\'\\n\\u{1b}[1m\u{fffd}'");
        assert_eq!(quoted(&[b'x'; 1000]), format!("'{}...'", "x".repeat(200)));
    }
}
