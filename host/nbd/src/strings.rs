//! The strings of the protocol: UTF-8, without NUL, at most [`MAX_STRING`] bytes.

/// The longest string of the protocol, in bytes.
pub const MAX_STRING: usize = 4096;

/// A string that a client sent. None: the protocol does not allow it.
pub(super) fn parse(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().filter(|text| is_valid(text)).map(str::to_string)
}

/// Whether the protocol can carry the text as a string.
pub(super) fn is_valid(text: &str) -> bool {
    text.len() <= MAX_STRING && !text.contains('\0')
}

/// The longest beginning of the text that the protocol can carry.
pub(super) fn cut(text: &str) -> &str {
    // A client ends the text at a NUL, or treats a NUL as an error.
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(MAX_STRING)]
}
