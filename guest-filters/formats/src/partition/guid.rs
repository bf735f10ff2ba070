//! The identifiers of a GPT.

use std::fmt;

/// A GUID, in the order of bytes in which a GPT has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// In which order the bytes are written as text.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Reads 32 hexadecimal digits with hyphens, in any case. None for anything else.
    pub fn parse(text: &str) -> Option<Guid> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        if groups != [8, 4, 4, 4, 12] || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut guid = [0; 16];
        for (pair, at) in digits.chunks_exact(2).zip(ORDER) {
            guid[at] = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Guid(guid))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, at) in ORDER.iter().enumerate() {
            let hyphen = if [4, 6, 8, 10].contains(&n) { "-" } else { "" };
            write!(f, "{hyphen}{:02X}", self.0[*at])?;
        }
        Ok(())
    }
}
