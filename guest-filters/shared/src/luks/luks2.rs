//! The header of LUKS2: 4096 bytes in binary, then metadata in JSON. There are two copies.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::volume::{Digest, HeaderError, Kdf, KeySlot, MAGIC, Volume, checked, damaged, name};

/// Bytes of the binary part.
const BINARY: usize = 4096;

/// The bytes that the secondary copy begins with.
const SECONDARY_MAGIC: [u8; 6] = *b"SKUL\xba\xbe";

/// The sizes that a header may have with its metadata, in bytes. The secondary copy follows the
/// primary one, so these are also the places where it can be.
const SIZES: [u64; 9] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// The longest metadata, in bytes. Metadata of 32 key slots take less than 16 KiB. A text of this
/// length takes less than 32 MiB in memory, however it nests.
pub const LONGEST: u32 = 256 << 10;

/// The most key slots, by the specification.
const MAX_SLOTS: usize = 32;

/// One of the two copies of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// At the begin of the disk.
    Primary,
    /// Behind the primary one.
    Secondary,
}

/// The binary part of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// Bytes of the copy, with its metadata: at least 16 KiB, at most 4 MiB.
    pub size: u32,
    /// Grows with each change of the header.
    pub sequence: u64,
    /// The SHA-256 digest of the copy with zeroes in place of its checksum.
    pub checksum: [u8; 32],
}

impl Binary {
    /// Bytes of the binary part; the metadata begins there.
    pub const BYTES: u32 = BINARY as u32;

    /// Where the checksum is in the binary part.
    pub const CHECKSUM: std::ops::Range<u32> = 448..512;

    /// Where the secondary copy can be.
    pub const PLACES: [u64; 9] = SIZES;

    /// Reads the binary part of the copy that is at `offset`.
    ///
    /// # Errors
    /// It is not this copy of a header, or it is damaged.
    pub fn parse(bytes: &[u8], copy: Copy, offset: u64) -> Result<Binary, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<BINARY>() else { return damaged("it is cut off") };
        let number = |at: usize| bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let magic = if copy == Copy::Primary { MAGIC } else { SECONDARY_MAGIC };
        if bytes[..6] != magic || bytes[6..8] != [0, 2] {
            return damaged("it does not begin as a header of LUKS2");
        }
        let size = number(8);
        if !SIZES.contains(&size) {
            return damaged(format!("it has {size} bytes"));
        }
        if number(256) != offset {
            return damaged("it belongs to another place");
        }
        let algorithm = &bytes[72..104];
        let end = algorithm.iter().position(|byte| *byte == 0).unwrap_or(algorithm.len());
        if &algorithm[..end] != b"sha256" {
            return Err(HeaderError::Unsupported("the checksum of its header is not SHA-256".into()));
        }
        let at = Binary::CHECKSUM.start as usize;
        let mut checksum = [0; 32];
        checksum.copy_from_slice(&bytes[at..at + 32]);
        Ok(Binary { size: size as u32, sequence: number(16), checksum })
    }
}

/// An object of the metadata.
type Object = Map<String, Value>;

fn object<'a>(of: &'a Object, key: &str) -> Result<&'a Object, HeaderError> {
    of.get(key).and_then(Value::as_object).map_or_else(|| damaged(format!("its metadata have no {key}")), Ok)
}

fn text<'a>(of: &'a Object, key: &str) -> Result<&'a str, HeaderError> {
    of.get(key).and_then(Value::as_str).map_or_else(|| damaged(format!("its metadata have no {key}")), Ok)
}

fn number(of: &Object, key: &str) -> Result<u32, HeaderError> {
    let number = of.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    number.map_or_else(|| damaged(format!("its metadata have no number {key}")), Ok)
}

/// A number of 64 bits, which is text in the metadata.
fn long(of: &Object, key: &str) -> Result<u64, HeaderError> {
    text(of, key)?.parse().or_else(|_| damaged(format!("its metadata have no number {key}")))
}

/// Bytes in base64.
fn bytes(of: &Object, key: &str) -> Result<Vec<u8>, HeaderError> {
    STANDARD.decode(text(of, key)?).or_else(|_| damaged(format!("{key} in its metadata is not base64")))
}

/// Whether a list of numbers as text has this one.
fn lists(of: &Object, key: &str, wanted: &str) -> bool {
    let list = of.get(key).and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|entry| entry.as_str() == Some(wanted)))
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Unsupported(what.into()))
}

/// The error for metadata of more than [`LONGEST`] bytes.
pub fn too_long() -> HeaderError {
    HeaderError::Unsupported(format!("its metadata have more than {} KiB", LONGEST >> 10))
}

/// Reads the metadata, without the zeroes behind them.
///
/// # Errors
/// They are damaged, or need something that this filter does not have.
pub fn json(metadata: &[u8]) -> Result<Volume, HeaderError> {
    if metadata.len() > LONGEST as usize {
        return Err(too_long());
    }
    let metadata: Value = serde_json::from_slice(metadata).or_else(|_| damaged("its metadata are not JSON"))?;
    let Some(metadata) = metadata.as_object() else { return damaged("its metadata are not an object") };
    requirements(object(metadata, "config")?)?;
    let segments = object(metadata, "segments")?;
    let mut all = segments.iter();
    let (Some((segment_name, segment)), None) = (all.next(), all.next()) else {
        return unsupported(format!("it has {} segments, and this filter reads disks of one", segments.len()));
    };
    let Some(segment) = segment.as_object() else { return damaged("its segment is not an object") };
    if text(segment, "type")? != "crypt" {
        return unsupported("its segment is not encrypted with dm-crypt");
    }
    if segment.contains_key("integrity") {
        return unsupported("it protects its data with dm-integrity, which this filter cannot read");
    }
    let sector = number(segment, "sector_size")?;
    if !matches!(sector, 512 | 1024 | 2048 | 4096) {
        return damaged(format!("its sectors have {sector} bytes"));
    }
    let size = match text(segment, "size")? {
        "dynamic" => None,
        _ => Some(long(segment, "size")?),
    };
    let (slots, key_bytes) = key_slots(metadata, segment_name)?;
    checked(Volume {
        cipher: name(text(segment, "encryption")?)?,
        key_bytes,
        sector,
        offset: long(segment, "offset")?,
        size,
        first_iv: long(segment, "iv_tweak")?,
        slots,
    })
}

/// A header may require what only later programs have.
fn requirements(config: &Object) -> Result<(), HeaderError> {
    let Some(mandatory) = config.get("requirements").and_then(|all| all.get("mandatory")) else { return Ok(()) };
    match mandatory.as_array().map(Vec::as_slice) {
        Some([]) => Ok(()),
        Some([first, ..]) => match first.as_str().map(name) {
            Some(Ok(first)) => unsupported(format!("it requires {first}, which this filter does not have")),
            _ => damaged("its requirements are not names"),
        },
        None => damaged("its requirements are not a list"),
    }
}

/// The key slots for the key of a segment: those of the highest priority first. And the bytes of
/// that key.
fn key_slots(metadata: &Object, segment: &str) -> Result<(Vec<KeySlot>, u32), HeaderError> {
    let digests = object(metadata, "digests")?;
    let of_segment = digests.values().filter_map(Value::as_object).find(|digest| lists(digest, "segments", segment));
    let Some(digest) = of_segment else { return damaged("no digest belongs to its segment") };
    if text(digest, "type")? != "pbkdf2" {
        return unsupported("the digest of its key is not PBKDF2");
    }
    let check = Digest {
        hash: name(text(digest, "hash")?)?,
        salt: bytes(digest, "salt")?,
        iterations: number(digest, "iterations")?,
        digest: bytes(digest, "digest")?,
    };
    let slots = object(metadata, "keyslots")?;
    if slots.len() > MAX_SLOTS {
        return damaged(format!("it has {} key slots", slots.len()));
    }
    let mut found = Vec::new();
    let mut key_bytes = None;
    for (slot_name, slot) in slots.iter().filter(|(slot_name, _)| lists(digest, "keyslots", slot_name)) {
        let Some(slot) = slot.as_object() else { return damaged("a key slot is not an object") };
        // 0 means that a program has to be told to use it. 1 is the default.
        let priority = slot.get("priority").and_then(Value::as_u64).unwrap_or(1);
        if text(slot, "type")? != "luks2" {
            return unsupported("a key slot of its key is not of the type luks2");
        }
        let bytes = number(slot, "key_size")?;
        if key_bytes.is_some_and(|known| known != bytes) {
            return damaged("its key slots have keys of different lengths");
        }
        key_bytes = Some(bytes);
        if priority > 0 {
            found.push((priority, key_slot(slot_name, slot, &check)?));
        }
    }
    let Some(key_bytes) = key_bytes else { return damaged("it has no key slot for its data") };
    found.sort_by_key(|(priority, slot)| (std::cmp::Reverse(*priority), slot.number));
    Ok((found.into_iter().map(|(_, slot)| slot).collect(), key_bytes))
}

fn key_slot(slot_name: &str, slot: &Object, digest: &Digest) -> Result<KeySlot, HeaderError> {
    let Ok(slot_number) = slot_name.parse() else { return damaged("the name of a key slot is not a number") };
    let (area, split, kdf) = (object(slot, "area")?, object(slot, "af")?, object(slot, "kdf")?);
    if text(area, "type")? != "raw" || text(split, "type")? != "luks1" {
        return unsupported(format!("key slot {slot_number} has an area or a splitter of an unknown type"));
    }
    let kdf = match text(kdf, "type")? {
        "pbkdf2" => Kdf::Pbkdf2 {
            hash: name(text(kdf, "hash")?)?,
            salt: bytes(kdf, "salt")?,
            iterations: number(kdf, "iterations")?,
        },
        kind @ ("argon2i" | "argon2id") => Kdf::Argon2 {
            kind: kind.to_string(),
            salt: bytes(kdf, "salt")?,
            iterations: number(kdf, "time")?,
            memory: number(kdf, "memory")?,
            lanes: number(kdf, "cpus")?,
        },
        _ => return unsupported(format!("the key of slot {slot_number} is derived in an unknown way")),
    };
    Ok(KeySlot {
        number: slot_number,
        kdf,
        cipher: name(text(area, "encryption")?)?,
        key_bytes: number(area, "key_size")?,
        offset: long(area, "offset")?,
        stripes: number(split, "stripes")?,
        hash: name(text(split, "hash")?)?,
        digest: digest.clone(),
    })
}
