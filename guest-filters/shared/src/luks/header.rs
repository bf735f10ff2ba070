//! Which version of LUKS a disk has.

use super::luks1;
use super::volume::{HeaderError, MAGIC, Volume};

/// A header's kind, by its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// LUKS1, whole.
    Luks1(Box<Volume>),
    /// LUKS2: the rest is to be read.
    Luks2,
}

/// Reads the first bytes of a disk, at least [`luks1::HEADER_BYTES`].
///
/// # Errors
/// It is no header of LUKS, or of a version that is not known, or damaged.
pub fn first(bytes: &[u8]) -> Result<Found, HeaderError> {
    let magic = bytes.first_chunk::<6>();
    let version = bytes.get(6..8).and_then(<[u8]>::first_chunk).map(|version| u16::from_be_bytes(*version));
    match (magic, version) {
        (Some(&MAGIC), Some(1)) => luks1::parse(bytes).map(|volume| Found::Luks1(Box::new(volume))),
        (Some(&MAGIC), Some(2)) => Ok(Found::Luks2),
        (Some(&MAGIC), Some(version)) => {
            Err(HeaderError::Unsupported(format!("version {version} is not known: this filter reads LUKS1 and LUKS2")))
        }
        _ => Err(HeaderError::Unsupported("the disk has no LUKS header".into())),
    }
}
