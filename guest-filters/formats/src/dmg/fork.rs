//! The resource fork of a classic Mac file: a map of types, and the resources of each.
//!
//! It has the tables of images that were made without a property list.

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields};

use super::table::{Index, TableReader};
use super::trailer::Koly;

/// The type of the resources that are tables.
const BLKX: [u8; 4] = *b"blkx";

/// Bytes of a fork's header, of the map before its list of types, of a type and of a resource in
/// the map.
const HEADER: usize = 16;
const MAP: usize = 30;
const TYPE: u64 = 8;
const REFERENCE: u64 = 12;

/// Reads all tables of a fork.
///
/// # Errors
/// Those of the source. A line if the fork or a table is wrong.
pub(super) fn tables(below: &BlockCache, koly: &Koly, index: &mut Index) -> Result<(), Error> {
    let fork = Fork { below, koly };
    let header: [u8; HEADER] = fork.array(0, "the header")?;
    let header = Fields::big(&header, "the fork's header");
    let (data, map) = (u64::from(header.u32(0)?), u64::from(header.u32(4)?));
    let head: [u8; MAP] = fork.array(map, "the map")?;
    let types = map + u64::from(Fields::big(&head, "the fork's map").u16(24)?);
    let number = fork.count(types)?;
    for nth in 0..number {
        let kind: [u8; TYPE as usize] = fork.array(types + 2 + nth * TYPE, "a type")?;
        let kind = Fields::big(&kind, "a type of the fork");
        if kind.bytes(0, 4)? != BLKX {
            continue;
        }
        // A number of one less is kept here as well.
        let resources = u64::from(kind.u16(4)?) + 1;
        let list = types + u64::from(kind.u16(6)?);
        for nth in 0..resources {
            let reference: [u8; REFERENCE as usize] = fork.array(list + nth * REFERENCE, "a resource's place")?;
            let place = Fields::big(&reference, "a resource of the fork").u32(4)?;
            // The high byte has attributes.
            fork.table(data + u64::from(place & 0x00ff_ffff), index)?;
        }
    }
    Ok(())
}

struct Fork<'a> {
    below: &'a BlockCache,
    koly: &'a Koly,
}

impl Fork<'_> {
    /// Where a part of the fork is in the file.
    fn place(&self, at: u64, length: u64, what: &str) -> Result<u64, Error> {
        let area = self.koly.fork;
        match at.checked_add(length) {
            Some(end) if end <= area.length => Ok(area.start + at),
            _ => Err(Error::Image(format!(
                "{what} of the resource fork has {length} bytes at {at}, and the fork has {}",
                area.length
            ))),
        }
    }

    fn array<const N: usize>(&self, at: u64, what: &str) -> Result<[u8; N], Error> {
        self.below.array(self.place(at, N as u64, what)?)
    }

    /// A list of types begins with the number of the last one. Of an empty list that is -1.
    fn count(&self, at: u64) -> Result<u64, Error> {
        let last: [u8; 2] = self.array(at, "the list of types")?;
        Ok(u64::from(u16::from_be_bytes(last).wrapping_add(1)))
    }

    fn table(&self, at: u64, index: &mut Index) -> Result<(), Error> {
        let length = u64::from(u32::from_be_bytes(self.array(at, "the length of a table")?));
        let mut from = self.place(at + 4, length, "a table")?;
        let end = from + length;
        let mut table = TableReader::new(self.koly, index)?;
        while from < end {
            let bytes = self.below.from(from)?;
            let bytes = &bytes[..bytes.len().min((end - from) as usize)];
            table.push(bytes)?;
            from += bytes.len() as u64;
        }
        table.finish()
    }
}
