//! Identifiers as Microsoft's formats have them: those of a GPT and of a VHDX image.

use std::fmt;

use rbdkit_filter_sdk::image::{Error, Fields};

/// A GUID, in the order of bytes in which an image has it: the first three groups are little-endian
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

/// In which order the bytes are written as text.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// The GUID that has only zeroes.
    pub const ZERO: Guid = Guid([0; 16]);

    /// A GUID by its groups as they are written, the last two of them together.
    pub const fn new(first: u32, second: u16, third: u16, rest: u64) -> Guid {
        let (a, b, c, d) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), rest.to_be_bytes());
        Guid([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    /// The GUID at `at`.
    ///
    /// # Errors
    /// That of [`Fields::bytes`].
    pub fn read(fields: Fields<'_>, at: usize) -> Result<Guid, Error> {
        let mut guid = [0; 16];
        guid.copy_from_slice(fields.bytes(at, 16)?);
        Ok(Guid(guid))
    }

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

#[cfg(test)]
mod tests {
    use super::Guid;

    #[test]
    fn a_guid_is_written_as_it_is_read() {
        let text = "2DC27766-F623-4200-9D64-115E9BFD4A08";
        let guid = Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
        assert_eq!(guid.to_string(), text);
        assert_eq!((Guid::parse(text), Guid::parse(&text.to_lowercase())), (Some(guid), Some(guid)));
        assert_eq!(guid.0[..8], [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42]);
        for wrong in ["", "2DC27766F62342009D64115E9BFD4A08", "{2DC27766-F623-4200-9D64-115E9BFD4A08}"] {
            assert_eq!(Guid::parse(wrong), None, "{wrong}");
        }
    }
}
