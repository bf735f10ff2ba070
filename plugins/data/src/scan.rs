//! Reads single tokens of the data language: numbers, names, words and strings.

use std::rc::Rc;

use crate::error::{DataError, Place, Problem};

/// A text, and how far it has been read.
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    pub(crate) at: usize,
    /// The variable that the text is of, for messages.
    variable: Option<Rc<str>>,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a [u8], variable: Option<Rc<str>>) -> Scanner<'a> {
        Scanner { text, at: 0, variable }
    }

    pub(crate) fn place(&self, offset: usize) -> Place {
        Place { variable: self.variable.clone(), offset }
    }

    /// The error for text at `offset` that is not in the language.
    pub(crate) fn wrong<T>(&self, offset: usize, what: impl Into<String>) -> Result<T, DataError> {
        Err(DataError::new(&self.place(offset), Problem::Syntax(what.into())))
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.text[self.at..]
    }

    pub(crate) fn take(&mut self, prefix: &[u8]) -> bool {
        let there = self.rest().starts_with(prefix);
        if there {
            self.at += prefix.len();
        }
        there
    }

    /// The bytes from here for which `wanted` holds.
    pub(crate) fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &[u8] {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    pub(crate) fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// What is here, for messages.
    pub(crate) fn here(&self) -> String {
        let rest = String::from_utf8_lossy(&self.rest()[..self.rest().len().min(4)]).into_owned();
        match rest.chars().next() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_string(),
        }
    }

    /// A number: decimal, hexadecimal after `0x`, octal after `0`.
    pub(crate) fn number(&mut self, max: u64) -> Result<u64, DataError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            return self.wrong(start, "a number here must not be negative");
        }
        self.take(b"+");
        let radix = if self.take(b"0x") || self.take(b"0X") {
            16
        } else if self.peek() == Some(b'0') {
            8
        } else {
            10
        };
        let digits_start = self.at;
        // With all digits, so that 08 is a mistake and not two numbers.
        let digits = self.take_while(|byte| if radix == 16 { byte.is_ascii_hexdigit() } else { byte.is_ascii_digit() });
        if digits.is_empty() {
            self.at = digits_start;
            return self.wrong(digits_start, format!("expecting a number but got {}", self.here()));
        }
        let mut value = Some(0u64);
        for byte in digits {
            let Some(digit) = char::from(*byte).to_digit(radix) else {
                let text = String::from_utf8_lossy(digits).into_owned();
                return self.wrong(start, format!("{text} begins with 0 but is not an octal number"));
            };
            value = value.and_then(|v| v.checked_mul(u64::from(radix))).and_then(|v| v.checked_add(u64::from(digit)));
        }
        match value.filter(|value| *value <= max) {
            Some(value) => Ok(value),
            None => self.wrong(start, format!("the number is larger than {max}")),
        }
    }

    /// As [`Scanner::long_number`]; blanks may stand before it.
    pub(crate) fn spaced_number(&mut self) -> Result<u64, DataError> {
        self.skip_blanks();
        self.long_number()
    }

    /// A number up to 2^63 - 1, which may end with a unit: `1k` is 1024.
    pub(crate) fn long_number(&mut self) -> Result<u64, DataError> {
        const MAX: u64 = i64::MAX as u64;
        let start = self.at;
        let number = self.number(MAX)?;
        // Not the units b and s: the word be16: may follow a number without a blank.
        let Some(power) = self.peek().and_then(|unit| b"kmgtpe".iter().position(|known| *known == unit | 0x20)) else {
            return Ok(number);
        };
        self.at += 1;
        match number.checked_mul(1 << (10 * (power + 1))).filter(|number| *number <= MAX) {
            Some(number) => Ok(number),
            None => self.wrong(start, format!("the number is larger than {MAX}")),
        }
    }

    /// `\NAME`
    pub(crate) fn name(&mut self) -> Result<Rc<str>, DataError> {
        let start = self.at;
        if !self.take(b"\\") {
            return self.wrong(start, format!("expecting a \\NAME but got {}", self.here()));
        }
        let name = self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let name: Rc<str> = String::from_utf8_lossy(name).into();
        if name.is_empty() {
            return self.wrong(start, "expecting letters, digits, - or _ after \\");
        }
        Ok(name)
    }

    /// `le16:WORD` and the like
    pub(crate) fn word(&mut self) -> Result<Vec<u8>, DataError> {
        let start = self.at;
        let kinds: [(&[u8], usize, bool); 6] = [
            (b"le16:", 2, true),
            (b"le32:", 4, true),
            (b"le64:", 8, true),
            (b"be16:", 2, false),
            (b"be32:", 4, false),
            (b"be64:", 8, false),
        ];
        for (prefix, length, little) in kinds {
            if self.take(prefix) {
                let value = self.number(u64::MAX >> (64 - 8 * length))?;
                let bytes = value.to_le_bytes();
                let mut bytes = bytes[..length].to_vec();
                if !little {
                    bytes.reverse();
                }
                return Ok(bytes);
            }
        }
        self.wrong(start, "parsing error: expecting le16: le32: le64: be16: be32: be64: or base64:")
    }

    /// The characters of a base64 text, up to one that is none.
    pub(crate) fn base64(&mut self) -> &[u8] {
        self.take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
    }

    /// `"STRING"`
    pub(crate) fn string(&mut self) -> Result<Vec<u8>, DataError> {
        let start = self.at;
        self.at += 1;
        let mut string = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => return Ok(string),
                b'\\' => string.push(self.escape(start)?),
                _ => string.push(byte),
            }
        }
        self.wrong(start, "unterminated string")
    }

    /// After a backslash in a string.
    fn escape(&mut self, string: usize) -> Result<u8, DataError> {
        let start = self.at - 1;
        let Some(byte) = self.peek() else { return self.wrong(string, "unterminated string") };
        self.at += 1;
        Ok(match byte {
            b'a' => 7,
            b'b' => 8,
            b't' => 9,
            b'n' => 10,
            b'v' => 11,
            b'f' => 12,
            b'r' => 13,
            b'x' => {
                let digit = |at: usize| self.text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(self.at), digit(self.at + 1)) else {
                    return self.wrong(start, "\\x must be followed by exactly two hexadecimal digits");
                };
                self.at += 2;
                (high * 16 + low) as u8
            }
            b'0'..=b'7' => {
                self.at -= 1;
                let mut value = 0;
                for _ in 0..3 {
                    match self.peek() {
                        Some(digit @ b'0'..=b'7') => value = value * 8 + u32::from(digit - b'0'),
                        _ => break,
                    }
                    self.at += 1;
                }
                match u8::try_from(value) {
                    Ok(byte) => byte,
                    Err(_) => return self.wrong(start, "an octal escape must be at most \\377"),
                }
            }
            b'8' | b'9' | b'u' | b'U' => {
                return self.wrong(start, format!("there is no escape \\{}", char::from(byte)));
            }
            other => other,
        })
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}
