//! Apple's partition map: entries in the blocks after the first.

use rbdkit_filter_sdk::image::{self, Error, Fields, Source};

use super::table::{Partition, Scheme, Table, Type};

/// A map with more entries is refused. Apple's tools make at most 63.
const MOST_ENTRIES: u32 = 256;

/// Whether an entry is where one has to be.
pub fn is_map(disk: &dyn Source) -> Result<bool, Error> {
    for block in [512, 1024, 2048, 4096] {
        if disk.size() >= 2 * block && image::read(disk, block, 2)? == b"PM" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the map of a disk. `first` is its first block.
pub fn read(disk: &dyn Source, first: &[u8]) -> Result<Table, Error> {
    let told = Fields::big(first, "the first block").u16(2)?;
    // Disks that are CDs as well say 2048, and have their map in blocks of 512.
    let mut bytes = if matches!(told, 512 | 1024 | 2048 | 4096) { u64::from(told) } else { 512 };
    if disk.size() < 2 * bytes || image::read(disk, bytes, 2)? != b"PM" {
        bytes = 512;
    }
    let mut partitions = Vec::new();
    let (mut number, mut count) = (1, 1);
    while number <= count {
        let block = image::read(disk, u64::from(number) * bytes, 512)?;
        let what = format!("entry {number} of the Apple partition map");
        let fields = Fields::big(&block, &what);
        if fields.bytes(0, 2)? != b"PM" {
            return Err(Error::image(format!("{what} has no signature")));
        }
        let told = fields.u32(4)?;
        if number == 1 {
            count = told;
        }
        if told != count || told > MOST_ENTRIES {
            return Err(Error::image(format!(
                "{what} says that there are {told} entries; the first says {count}, and at most {MOST_ENTRIES} are read"
            )));
        }
        partitions.push(Partition {
            number,
            start: u64::from(fields.u32(8)?) * bytes,
            size: u64::from(fields.u32(12)?) * bytes,
            kind: Type::Apm(fields.text(48, 32)?.to_vec()),
            label: String::from_utf8_lossy(fields.text(16, 32)?).into_owned(),
            guid: None,
        });
        number += 1;
    }
    Ok(Table { scheme: Scheme::Apm, sector: bytes as u32, partitions, dangers: Vec::new() })
}
