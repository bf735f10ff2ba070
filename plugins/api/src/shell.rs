//! Words for a shell, and words as a shell reads them.

use std::ffi::{OsStr, OsString};
use std::fmt;
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

/// Why a text cannot be taken apart into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordsError {
    /// A quote has no end.
    OpenQuote(char),
    /// Nothing follows the last backslash.
    LastBackslash,
}

impl fmt::Display for WordsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WordsError::OpenQuote(quote) => write!(f, "a {quote} is not closed"),
            WordsError::LastBackslash => f.write_str("nothing follows the backslash at the end"),
        }
    }
}

impl std::error::Error for WordsError {}

/// The words of a text, quoted as in a shell: blanks separate words, single and double quotes keep
/// them together, and a backslash takes the next character as it is. Nothing is expanded: all other
/// characters stand for themselves.
///
/// # Errors
/// A quote or a backslash has nothing after it.
pub fn shell_words(text: &OsStr) -> Result<Vec<OsString>, WordsError> {
    let mut words = Vec::new();
    // None between two words.
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = text.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\n' => words.extend(word.take().map(OsString::from_vec)),
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next() {
                        Some(b'\'') => break,
                        Some(byte) => word.push(byte),
                        None => return Err(WordsError::OpenQuote('\'')),
                    }
                }
            }
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next() {
                        Some(b'"') => break,
                        Some(b'\\') => match bytes.next() {
                            // A backslash takes itself away before these only.
                            Some(byte @ (b'"' | b'\\' | b'$' | b'`')) => word.push(byte),
                            Some(b'\n') => {}
                            Some(byte) => word.extend([b'\\', byte]),
                            None => return Err(WordsError::OpenQuote('"')),
                        },
                        Some(byte) => word.push(byte),
                        None => return Err(WordsError::OpenQuote('"')),
                    }
                }
            }
            b'\\' => match bytes.next() {
                Some(b'\n') => {}
                Some(byte) => word.get_or_insert_default().push(byte),
                None => return Err(WordsError::LastBackslash),
            },
            byte => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(OsString::from_vec));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_mean_themselves() {
        assert_eq!(shell_quoted(OsStr::new("it's $x")), "'it'\\''s $x'");
    }

    #[test]
    fn words_are_those_that_a_shell_reads() {
        for text in [
            "",
            "  ",
            "one",
            " one\ttwo  three ",
            "'one two' three",
            r#"a"b c"'d e'f"#,
            r#""\a\"\\\$" \a\ b"#,
            "'' \"\" x=''",
            r#"chain='chain:--filter=qcow2 file "a b"'"#,
            "over\\\nlines",
        ] {
            let script = format!("for word in {text}; do printf '%s\\0' \"$word\"; done");
            let shell = std::process::Command::new("/bin/sh").arg("-c").arg(script).output().unwrap();
            assert!(shell.status.success(), "{text}");
            let expected: Vec<OsString> = shell
                .stdout
                .split_inclusive(|byte| *byte == 0)
                .map(|word| OsStr::from_bytes(&word[..word.len() - 1]).to_os_string())
                .collect();
            assert_eq!(shell_words(OsStr::new(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_expand_stands_for_itself() {
        assert_eq!(shell_words(OsStr::new("$HOME *;~ `x`")).unwrap(), ["$HOME", "*;~", "`x`"]);
    }

    #[test]
    fn a_quoted_word_is_read_back() {
        for word in ["", "it's", "\"\\\n", "a b"] {
            let quoted = shell_quoted(OsStr::new(word));
            assert_eq!(shell_words(&quoted).unwrap(), [word]);
        }
    }

    #[test]
    fn a_text_that_ends_too_early_is_an_error() {
        for (text, error) in [
            ("a 'b", "a ' is not closed"),
            ("\"b", "a \" is not closed"),
            ("\"b\\", "a \" is not closed"),
            ("b\\", "nothing follows the backslash at the end"),
        ] {
            assert_eq!(shell_words(OsStr::new(text)).unwrap_err().to_string(), error);
        }
    }
}
