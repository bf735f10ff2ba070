//! Words for a shell.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A word that the shell takes as it is, in single quotes. Inside them only a single quote is
/// special.
#[must_use]
pub fn shell_quoted(text: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_mean_themselves() {
        assert_eq!(shell_quoted(OsStr::new("it's $x")), "'it'\\''s $x'");
    }
}
