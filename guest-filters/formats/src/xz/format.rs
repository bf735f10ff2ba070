//! What the headers of xz have.

use rbdkit_filter_sdk::image::Error;

pub(super) const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
pub(super) const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// The size of the header and the footer of a stream.
pub(super) const HEADER: u64 = 12;
/// The largest dictionary that is allocated. xz uses that much at level 9.
pub(super) const MAX_DICTIONARY: u32 = 64 << 20;

/// The checksum of the blocks of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    None = 0,
    Crc32 = 1,
    Crc64 = 4,
    Sha256 = 10,
}

impl Check {
    /// The check that two bytes of a stream's header or footer name.
    pub(super) fn of(flags: [u8; 2], at: u64) -> Result<Check, Error> {
        Ok(match flags {
            [0, 0] => Check::None,
            [0, 1] => Check::Crc32,
            [0, 4] => Check::Crc64,
            [0, 10] => Check::Sha256,
            [a, b] => {
                return Err(Error::image(format!(
                    "the xz stream at {at} has the flags {a:02x}{b:02x}; a checksum of 0000 (none), 0001 (CRC32), 0004 \
                     (CRC64) or 000a (SHA-256) is supported"
                )));
            }
        })
    }

    pub(super) fn size(self) -> usize {
        match self {
            Check::None => 0,
            Check::Crc32 => 4,
            Check::Crc64 => 8,
            Check::Sha256 => 32,
        }
    }
}

/// A place is the offset of a block, and the check of its stream in the low four bits.
pub(super) fn place(offset: u64, check: Check) -> u64 {
    offset << 4 | check as u64
}
