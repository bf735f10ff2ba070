//! The region tables: where the table of the blocks and the metadata are.
//!
//! There are two copies. The first one whose checksum is right holds.

use std::ops::Range;

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use super::header::{MIB, wrong};
use crate::guid::Guid;

/// Where the copies are.
const TABLES: [u64; 2] = [192 << 10, 256 << 10];

/// Bytes of a copy.
const TABLE: usize = 64 << 10;

/// A table has at most so many entries: more do not fit.
const MOST_ENTRIES: u32 = 2047;

const BAT: Guid = Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: Guid = Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

/// Where the regions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The block allocation table.
    pub bat: Range<u64>,
    /// The table of the metadata, and its items.
    pub metadata: Range<u64>,
    /// Whether both copies are right and say different things.
    pub copies_differ: bool,
}

/// The bytes of a copy, or why it is not right.
fn copy(image: &dyn Source, at: u64) -> Result<Result<Vec<u8>, String>, Error> {
    if at + TABLE as u64 > image.size() {
        return Ok(Err(format!("ends behind the image, which has {} bytes", image.size())));
    }
    let bytes = image::read(image, at, TABLE)?;
    Ok(match wrong(&bytes, b"regi") {
        Some(why) => Err(why),
        None => Ok(bytes),
    })
}

impl Regions {
    /// Reads the region table. `log` is where the log is.
    ///
    /// # Errors
    /// Those of the image. A line if no copy is right, or it says what cannot be.
    pub fn read(image: &dyn Source, log: &Range<u64>) -> Result<Regions, Error> {
        let (first, second) = (copy(image, TABLES[0])?, copy(image, TABLES[1])?);
        let copies_differ = matches!((&first, &second), (Ok(first), Ok(second)) if first != second);
        let bytes = first.or_else(|first| {
            second.map_err(|second| {
                Error::image(format!("no region table is right: the first one {first}; the second one {second}"))
            })
        })?;
        let fields = Fields::little(&bytes, "the region table");
        let count = fields.u32(8)?;
        if count > MOST_ENTRIES {
            return Err(Error::image(format!("the region table says {count} regions: it has at most {MOST_ENTRIES}")));
        }
        let (mut bat, mut metadata) = (None, None);
        let mut all = Vec::new();
        if !log.is_empty() {
            all.push((log.clone(), "the log".to_string()));
        }
        for n in 0..count as usize {
            let at = 16 + n * 32;
            let (guid, offset, length) = (Guid::read(fields, at)?, fields.u64(at + 16)?, fields.u32(at + 24)?);
            let region = checked(guid, offset, length.into(), image.size())?;
            let place = match guid {
                BAT => Some(&mut bat),
                METADATA => Some(&mut metadata),
                _ if fields.u32(at + 28)? & 1 != 0 => {
                    return Err(Error::image(format!("the image needs a region that is not known: {guid}")));
                }
                _ => None,
            };
            if let Some(place) = place
                && place.replace(region.clone()).is_some()
            {
                return Err(Error::image(format!("the region table has {} twice", name(guid))));
            }
            all.push((region, name(guid)));
        }
        all.sort_by_key(|(region, _)| region.start);
        if let Some([(one, first), (other, second)]) =
            all.array_windows().find(|[(one, _), (two, _)]| one.end > two.start)
        {
            return Err(Error::image(format!(
                "{first} and {second} overlap: one ends at {}, and the other begins at {}",
                one.end, other.start
            )));
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata, copies_differ }),
            (None, _) => Err(Error::image(format!("the region table does not have {}", name(BAT)))),
            (_, None) => Err(Error::image(format!("the region table does not have {}", name(METADATA)))),
        }
    }
}

/// A region for people.
fn name(guid: Guid) -> String {
    match guid {
        BAT => "the block allocation table".into(),
        METADATA => "the metadata".into(),
        other => format!("the region {other}"),
    }
}

/// Where a region is.
///
/// # Errors
/// A line if it cannot be there.
fn checked(guid: Guid, offset: u64, length: u64, size: u64) -> Result<Range<u64>, Error> {
    if offset < MIB || !offset.is_multiple_of(MIB) || length == 0 || !length.is_multiple_of(MIB) {
        return Err(Error::image(format!(
            "{} has {length} bytes at {offset}: both must be multiples of 1048576, and not zero",
            name(guid)
        )));
    }
    let end = offset.saturating_add(length);
    if end > size {
        return Err(Error::image(format!("{} ends at {end}, and the image after {size} bytes", name(guid))));
    }
    Ok(offset..end)
}
