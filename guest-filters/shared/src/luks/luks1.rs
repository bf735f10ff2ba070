//! The header of LUKS1: 592 bytes, big endian.

use super::volume::{Digest, HeaderError, Kdf, KeySlot, SECTOR, Volume, checked, damaged, name};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 592;

/// How many key slots there are.
const SLOTS: usize = 8;

/// Where the first key slot begins, and the bytes of each.
const FIRST_SLOT: usize = 208;
const SLOT_BYTES: usize = 48;

/// Marks a key slot that is used, and one that is not.
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;

/// The fields of a header, by their offsets.
struct Fields<'a>(&'a [u8; HEADER_BYTES]);

impl Fields<'_> {
    fn bytes(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }

    fn number(&self, at: usize) -> u32 {
        self.bytes(at, 4).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// A text of at most 32 bytes that ends with a zero.
    fn text(&self, at: usize) -> Result<&str, HeaderError> {
        let bytes = self.bytes(at, 32);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).or_else(|_| damaged("a name in it is not text"))
    }
}

/// Reads a header, which begins with the magic and the version.
///
/// # Errors
/// It is damaged, or the header of a disk elsewhere.
pub fn parse(bytes: &[u8]) -> Result<Volume, HeaderError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return damaged("it is cut off") };
    let fields = Fields(header);
    let cipher = name(&format!("{}-{}", fields.text(8)?, fields.text(40)?))?;
    let hash = name(fields.text(72)?)?;
    let key_bytes = fields.number(108);
    let digest = Digest {
        hash: hash.clone(),
        salt: fields.bytes(132, 32).to_vec(),
        iterations: fields.number(164),
        digest: fields.bytes(112, 20).to_vec(),
    };
    let mut slots = Vec::new();
    for number in 0..SLOTS {
        let at = FIRST_SLOT + number * SLOT_BYTES;
        match fields.number(at) {
            DISABLED => continue,
            ENABLED => {}
            _ => return damaged(format!("key slot {number} is neither used nor unused")),
        }
        slots.push(KeySlot {
            number: number as u32,
            kdf: Kdf::Pbkdf2 {
                hash: hash.clone(),
                salt: fields.bytes(at + 8, 32).to_vec(),
                iterations: fields.number(at + 4),
            },
            cipher: cipher.clone(),
            key_bytes,
            offset: u64::from(fields.number(at + 40)) * SECTOR,
            stripes: fields.number(at + 44),
            hash: hash.clone(),
            digest: digest.clone(),
        });
    }
    let offset = u64::from(fields.number(104)) * SECTOR;
    if offset == 0 {
        return Err(HeaderError::Unsupported(
            "the header belongs to a disk elsewhere (it is a detached header)".into(),
        ));
    }
    checked(Volume { cipher, key_bytes, sector: SECTOR as u32, offset, size: None, first_iv: 0, slots })
}
