//! Base64 with padding, as `base64(1)` writes it. White space is ignored.

use std::fmt;

/// Why a text is not base64. The message completes `base64=...: `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base64Error {
    /// A byte that does not belong there.
    Alien {
        /// Where it is.
        offset: usize,
    },
    /// Data after the padding.
    AfterPadding {
        /// Where they are.
        offset: usize,
    },
    /// It ends within a group of four characters.
    Incomplete,
}

impl fmt::Display for Base64Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base64Error::Alien { offset } => {
                write!(f, "is not base64: the byte at offset {offset} does not belong there")
            }
            Base64Error::AfterPadding { offset } => {
                write!(f, "is not base64: data at offset {offset} after the padding")
            }
            Base64Error::Incomplete => f.write_str("is not base64: it ends within a group of four characters"),
        }
    }
}

impl std::error::Error for Base64Error {}

/// The bytes that `text` stands for.
///
/// # Errors
/// It is not base64.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Base64Error> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut count, mut padding) = (0u32, 0, 0);
    for (offset, &byte) in text.iter().enumerate() {
        if byte.is_ascii_whitespace() {
            continue;
        }
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if count >= 2 => {
                padding += 1;
                0
            }
            _ => return Err(Base64Error::Alien { offset }),
        };
        if padding > 0 && byte != b'=' {
            return Err(Base64Error::AfterPadding { offset });
        }
        group = group << 6 | u32::from(value);
        count += 1;
        if count == 4 {
            let [_, decoded @ ..] = group.to_be_bytes();
            bytes.extend_from_slice(&decoded[..3 - padding]);
            (group, count) = (0, if padding > 0 { COMPLETE } else { 0 });
        }
    }
    if count == 0 || count == COMPLETE { Ok(bytes) } else { Err(Base64Error::Incomplete) }
}

/// After the padding: no further group follows.
const COMPLETE: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_padding_are_read() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("MTIz", b"123"),
            ("MTI=", b"12"),
            ("MQ==", b"1"),
            ("aGVsbG8gbmJka2l0IHVzZXI=", b"hello nbdkit user"),
            ("MT Iz\nMTIz", b"123123"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["MTI", "MTIz*", "=", "M===", "MQ==MQ==", "MQ=1", "MQ=", "MQ==="] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
    }
}
