//! The identifier and the two headers at the start of an image.
//!
//! The headers say where the log is and whether it is needed. A program that writes changes the one
//! that is not current, so one of them is right at any time.

use std::ops::Range;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source, quoted};

use crate::checksum::CRC32C;
use crate::guid::Guid;

/// Everything but sectors is a multiple of this, 1 MiB. The first one has the headers and the
/// region tables.
pub const MIB: u64 = 1 << 20;

/// What an image begins with.
const IDENTIFIER: &[u8; 8] = b"vhdxfile";

/// Bytes of the name of the program that made the image, in UTF-16.
const CREATOR: usize = 512;

/// Where the headers are.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];

/// Where the identifier and the headers end.
pub const HEADERS_END: u64 = 192 << 10;

/// Bytes of a header.
const HEADER: usize = 4096;

/// The header that is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxHeader {
    /// The larger one is that of the current header.
    pub sequence: u64,
    /// It changes when a program changes what the disk has. A child names its parent's.
    pub data_write: Guid,
    /// What the entries of the log have. Zero if none is needed.
    pub log_guid: Guid,
    /// Where the log is.
    pub log: Range<u64>,
}

/// Whether an image begins as a VHDX image does.
pub fn has_identifier(image: &dyn Source) -> Result<bool, Error> {
    Ok(image.size() >= 8 && image::read(image, 0, 8)? == IDENTIFIER)
}

/// The name of the program that made the image, for people.
pub fn creator(image: &dyn Source) -> Result<String, Error> {
    if image.size() < (8 + CREATOR) as u64 {
        return Ok(String::new());
    }
    Ok(utf16(&image::read(image, 8, CREATOR)?))
}

/// Text in UTF-16, little endian, up to its first zero.
pub fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default())
}

/// Why a structure is not right: its first four bytes, or its checksum behind them. Nothing if it
/// is.
pub fn wrong(bytes: &[u8], signature: &[u8; 4]) -> Option<String> {
    let fields = Fields::little(bytes, "it");
    let (Ok(begins), Ok(stored)) = (fields.bytes(0, 4), fields.u32(4)) else { return Some("is cut".into()) };
    if begins != signature {
        return Some(format!("does not begin with {}", quoted(signature)));
    }
    let right = checksum(bytes);
    (stored != right).then(|| format!("has the checksum {stored:#010x}, and its bytes give {right:#010x}"))
}

/// The checksum of a structure, whose own four bytes at 4 count as zeroes.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(bytes.get(..4).unwrap_or(bytes));
    digest.update(&[0; 4]);
    digest.update(bytes.get(8..).unwrap_or_default());
    digest.finalize()
}

/// A header, or why it is not right.
fn one(image: &dyn Source, at: u64) -> Result<Result<Vec<u8>, String>, Error> {
    if at + HEADER as u64 > image.size() {
        return Ok(Err(format!("ends behind the image, which has {} bytes", image.size())));
    }
    let bytes = image::read(image, at, HEADER)?;
    Ok(match wrong(&bytes, b"head") {
        Some(why) => Err(why),
        None => Ok(bytes),
    })
}

impl VhdxHeader {
    /// Finds the current header.
    ///
    /// # Errors
    /// Those of the image. A line if no header is right, or the current one says what cannot be.
    pub fn find(image: &dyn Source) -> Result<VhdxHeader, Error> {
        if !has_identifier(image)? {
            return Err(Error::image("it is not a VHDX image: it does not begin with vhdxfile"));
        }
        let sequence = |bytes: &[u8]| Fields::little(bytes, "the header").u64(8);
        let bytes = match (one(image, HEADERS[0])?, one(image, HEADERS[1])?) {
            (Err(first), Err(second)) => {
                return Err(Error::image(format!(
                    "no header is right: the first one {first}; the second one {second}"
                )));
            }
            (Ok(bytes), Err(_)) | (Err(_), Ok(bytes)) => bytes,
            (Ok(first), Ok(second)) => {
                let (of_first, of_second) = (sequence(&first)?, sequence(&second)?);
                // Disk2vhd makes images with two headers that are equal.
                if of_first == of_second && first != second {
                    return Err(Error::image(format!(
                        "both headers have the sequence number {of_first}, and say different things"
                    )));
                }
                if of_first >= of_second { first } else { second }
            }
        };
        VhdxHeader::parse(&bytes, image.size())
    }

    fn parse(bytes: &[u8], size: u64) -> Result<VhdxHeader, Error> {
        let fields = Fields::little(bytes, "the header");
        let version = fields.u16(66)?;
        if version != 1 {
            return Err(Error::image(format!("version {version} of VHDX is not supported: 1 is")));
        }
        let log_guid = Guid::read(fields, 48)?;
        let (log_version, length, offset) = (fields.u16(64)?, u64::from(fields.u32(68)?), fields.u64(72)?);
        let has_log = log_guid != Guid::ZERO;
        if has_log && log_version != 0 {
            return Err(Error::image(format!("version {log_version} of the log is not supported: 0 is")));
        }
        let mut log = 0..0;
        if has_log || length != 0 {
            if length == 0 || !length.is_multiple_of(MIB) || offset < MIB || !offset.is_multiple_of(MIB) {
                return Err(Error::image(format!(
                    "the log has {length} bytes at {offset}: both must be multiples of 1048576, and not zero"
                )));
            }
            log = offset..offset.saturating_add(length);
            if log.end > size {
                return Err(Error::image(format!("the log ends at {}, and the image after {size} bytes", log.end)));
            }
        }
        Ok(VhdxHeader { sequence: fields.u64(8)?, data_write: Guid::read(fields, 32)?, log_guid, log })
    }
}
