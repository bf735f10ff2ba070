//! What a header of LUKS says, whatever its version.
//!
//! Headers are untrusted. Reading one needs little memory, and gives either a [`Volume`] or one
//! line that says why not. Whether the numbers in it are too large for the host, the host decides.

use std::fmt;

/// The bytes that a header begins with.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";

/// The unit of LUKS for offsets and for IVs, in bytes.
pub const SECTOR: u64 = 512;

/// An encrypted disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// dm-crypt's name of the cipher.
    pub cipher: String,
    /// Bytes of the volume key.
    pub key_bytes: u32,
    /// Bytes of a sector, a power of two from 512 to 4096.
    pub sector: u32,
    /// Where the data begins, in bytes.
    pub offset: u64,
    /// Bytes of data. None: up to the end of the disk.
    pub size: Option<u64>,
    /// The number of the first sector for the IV, in units of 512 bytes.
    pub first_iv: u64,
    /// The key slots, in the order in which they are to be tried.
    pub slots: Vec<KeySlot>,
}

/// A key slot: the volume key, encrypted with a key that is derived from a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Its number.
    pub number: u32,
    /// How the key is derived.
    pub kdf: Kdf,
    /// dm-crypt's name of the cipher that encrypts the key material.
    pub cipher: String,
    /// Bytes of the key that is derived.
    pub key_bytes: u32,
    /// Where the key material is, in bytes.
    pub offset: u64,
    /// Into how many stripes the volume key is split.
    pub stripes: u32,
    /// The hash that merges the stripes.
    pub hash: String,
    /// What tells whether the key is right.
    pub digest: Digest,
}

impl KeySlot {
    /// Bytes of key material in whole sectors. None if that is far too much.
    pub fn material(&self, volume: &Volume) -> Option<u32> {
        volume.key_bytes.checked_mul(self.stripes)?.checked_next_multiple_of(SECTOR as u32)
    }
}

/// How a key is derived from a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2.
    Pbkdf2 {
        /// The hash.
        hash: String,
        /// The salt.
        salt: Vec<u8>,
        /// How often it is hashed.
        iterations: u32,
    },
    /// Argon2.
    Argon2 {
        /// `argon2i` or `argon2id`.
        kind: String,
        /// The salt.
        salt: Vec<u8>,
        /// Passes over the memory.
        iterations: u32,
        /// KiB.
        memory: u32,
        /// Lanes.
        lanes: u32,
    },
}

/// A digest of the volume key: PBKDF2 of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The hash.
    pub hash: String,
    /// The salt.
    pub salt: Vec<u8>,
    /// How often it is hashed.
    pub iterations: u32,
    /// The digest.
    pub digest: Vec<u8>,
}

/// Why a header cannot be used. The text continues "LUKS: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It is another version, or something else.
    Unsupported(String),
    /// It contradicts itself, or is cut off.
    Damaged(String),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::Unsupported(what) => f.write_str(what),
            HeaderError::Damaged(what) => write!(f, "the header is damaged: {what}"),
        }
    }
}

/// The error of a header that contradicts itself.
///
/// # Errors
/// Always.
pub fn damaged<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Damaged(what.into()))
}

/// A name of a cipher or a hash, which is short and printable.
///
/// # Errors
/// It is not.
pub fn name(text: &str) -> Result<String, HeaderError> {
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_string()),
        false => damaged("a name in it is empty or is not text"),
    }
}

/// Checks what both versions have in common.
///
/// # Errors
/// The numbers contradict each other.
pub fn checked(volume: Volume) -> Result<Volume, HeaderError> {
    let aligned = volume.offset.is_multiple_of(volume.sector.into());
    if volume.offset == 0 || !aligned || i64::try_from(volume.offset).is_err() {
        return damaged(format!("the data begins at {}", volume.offset));
    }
    if volume.size.is_some_and(|size| size == 0 || !size.is_multiple_of(volume.sector.into())) {
        return damaged("the size of the data is not a number of sectors");
    }
    if volume.key_bytes == 0 || volume.key_bytes > 512 {
        return damaged(format!("the key has {} bytes", volume.key_bytes));
    }
    for slot in &volume.slots {
        let end = slot.material(&volume).and_then(|length| slot.offset.checked_add(length.into()));
        if slot.stripes == 0 || end.is_none_or(|end| end > volume.offset) {
            return damaged(format!("the key material of slot {} is not within the header", slot.number));
        }
    }
    Ok(volume)
}
