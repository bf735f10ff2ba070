//! The frames of a file: by the seek table at its end, or by their headers.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Fields, Source, read};

use super::header;
use super::options::MAX_UNIT;
use crate::unpack::{Index, Input, MAX_UNITS, Point};

/// The end of a seek table: the number of frames, a descriptor and a number that marks it.
const FOOTER: u64 = 9;
const TABLE_MAGIC: u32 = 0x8f92_eab1;
/// The number of the skippable frame that holds the table.
const FRAME_MAGIC: u32 = 0x184d_2a5e;
const HAS_CHECKSUMS: u8 = 0x80;
const RESERVED: u8 = 0x7c;

/// The checksums of frames in the seek table, with the offset of each frame.
pub(super) type Checksums = Rc<[(u64, u32)]>;

/// A seek table.
struct SeekTable {
    entries: Vec<u8>,
    has_checksums: bool,
}

/// Finds the frames without decoding them. None if the file has to be decoded.
///
/// # Errors
/// Those of the source.
pub(super) fn frames(below: &Rc<dyn Source>) -> Result<(Option<Index>, Checksums), Error> {
    let none = || Rc::from(Vec::new());
    let found = match seek_table(&**below)? {
        Some(table) => by_table(&table, below.size())?,
        None => None,
    };
    if let Some((index, checksums)) = found {
        return Ok((Some(index), checksums));
    }
    match walk(&mut Input::new(Rc::clone(below), 0)) {
        Ok(index) => Ok((index, none())),
        // Decoding the file says what is wrong.
        Err(Error::Image(_)) => Ok((None, none())),
        Err(error) => Err(error),
    }
}

/// How much data the seek table says the file has, and in how many frames.
///
/// # Errors
/// Those of the source.
pub(super) fn seek_table_size(below: &Rc<dyn Source>) -> Result<Option<(u64, usize)>, Error> {
    let Some(table) = seek_table(&**below)? else { return Ok(None) };
    let frames = table.entries.len() / table.entry();
    Ok(by_table(&table, below.size())?.map(|(index, _)| (index.size, frames)))
}

impl SeekTable {
    fn entry(&self) -> usize {
        if self.has_checksums { 12 } else { 8 }
    }
}

/// Reads the seek table, if the file ends with one.
fn seek_table(below: &dyn Source) -> Result<Option<SeekTable>, Error> {
    let Some(footer_at) = below.size().checked_sub(FOOTER) else { return Ok(None) };
    let footer = read(below, footer_at, FOOTER as usize)?;
    let fields = Fields::little(&footer, "the end of a seek table");
    let (count, descriptor) = (fields.u32(0)? as usize, fields.u8(4)?);
    if fields.u32(5)? != TABLE_MAGIC || descriptor & RESERVED != 0 || count > MAX_UNITS {
        return Ok(None);
    }
    let mut table = SeekTable { entries: Vec::new(), has_checksums: descriptor & HAS_CHECKSUMS != 0 };
    let length = count * table.entry();
    let Some(at) = footer_at.checked_sub(length as u64 + 8) else { return Ok(None) };
    let header = read(below, at, 8)?;
    let fields = Fields::little(&header, "the start of a seek table");
    if fields.u32(0)? != FRAME_MAGIC || u64::from(fields.u32(4)?) != length as u64 + FOOTER {
        return Ok(None);
    }
    table.entries = read(below, at + 8, length)?;
    Ok(Some(table))
}

/// The frames that a seek table has. None if they are not all that stands before the table: then it
/// is one of a part of the file, and the headers of the frames say more.
fn by_table(table: &SeekTable, size: u64) -> Result<Option<(Index, Checksums)>, Error> {
    let (mut index, mut checksums, mut at) = (Index::default(), Vec::new(), 0);
    for entry in table.entries.chunks_exact(table.entry()) {
        let fields = Fields::little(entry, "an entry of the seek table");
        let (packed, data) = (u64::from(fields.u32(0)?), u64::from(fields.u32(4)?));
        if data > 0 {
            index.units.push(Point { out: index.size, at });
            if table.has_checksums {
                checksums.push((at, fields.u32(8)?));
            }
        }
        at += packed;
        index.size += data;
    }
    let table_at = size - FOOTER - 8 - table.entries.len() as u64;
    Ok(Some((index, Checksums::from(checksums))).filter(|(index, _)| at == table_at && !index.units.is_empty()))
}

/// Goes over the headers of all frames and blocks. None if a frame does not say how much data it
/// has, or has too much for a request.
fn walk(input: &mut Input) -> Result<Option<Index>, Error> {
    let mut index = Index::default();
    while let Some(frame) = header::next(input)? {
        let Some(size) = frame.content_size.filter(|size| *size <= MAX_UNIT) else { return Ok(None) };
        if index.units.len() == MAX_UNITS {
            return Ok(None);
        }
        if size > 0 {
            index.units.push(Point { out: index.size, at: frame.at });
            index.size += size;
        }
        loop {
            let [a, b, c] = input.array("the header of a zstd block")?;
            let header = u32::from_le_bytes([a, b, c, 0]);
            // The second kind has one byte, which is repeated.
            let length = if header >> 1 & 3 == 1 { 1 } else { u64::from(header >> 3) };
            input.go_to(input.at() + length);
            if header & 1 != 0 {
                break;
            }
        }
        if frame.has_checksum {
            input.array::<4>("the checksum of a zstd frame")?;
        }
    }
    Ok(Some(index).filter(|index| !index.units.is_empty()))
}
