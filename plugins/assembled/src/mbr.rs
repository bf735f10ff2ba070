//! Partition tables of the old kind: the master boot record, and the records of an extended
//! partition.

use crate::SECTOR;

/// A record of one sector with up to four entries.
pub type Record = [u8; 512];

/// An entry of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first sector.
    pub first: u32,
    /// The number of sectors.
    pub count: u32,
    /// The byte that says what is in it.
    pub kind: u8,
    /// Whether a computer should boot from it.
    pub bootable: bool,
}

/// The kind of an extended partition that is addressed by sectors.
pub const EXTENDED: u8 = 0x0f;

/// The kind of the only partition of a disk with GPT.
pub const PROTECTIVE: u8 = 0xee;

/// Where the entries begin in a record.
const ENTRIES: usize = 0x1be;

/// An address by cylinder, head and sector that says that only the sector's number counts: cylinder
/// 1023, head 254, sector 63.
const CHS_TOO_LARGE: [u8; 3] = [254, 0xff, 0xff];

impl Entry {
    /// An entry for a range of bytes. A part of a sector at the end counts as a whole one. None: a
    /// number has more than 32 bits, or the range does not begin with a sector.
    pub fn of_bytes(start: u64, length: u64, kind: u8) -> Option<Entry> {
        if !start.is_multiple_of(SECTOR) {
            return None;
        }
        let first = u32::try_from(start / SECTOR).ok()?;
        let count = u32::try_from(length.div_ceil(SECTOR)).ok()?;
        Some(Entry { first, count, kind, bootable: false })
    }

    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = if self.bootable { 0x80 } else { 0 };
        bytes[1..4].copy_from_slice(&CHS_TOO_LARGE);
        bytes[4] = self.kind;
        bytes[5..8].copy_from_slice(&CHS_TOO_LARGE);
        bytes[8..12].copy_from_slice(&self.first.to_le_bytes());
        bytes[12..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }
}

/// A record with these entries. There are at most four.
pub fn record(entries: &[Entry]) -> Record {
    let mut record = [0; 512];
    let (places, _) = record[ENTRIES..ENTRIES + 64].as_chunks_mut::<16>();
    for (place, entry) in places.iter_mut().zip(entries) {
        *place = entry.encode();
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_where_a_partition_is_and_what() {
        let entry = Entry { bootable: true, ..Entry::of_bytes(1 << 20, 1000, 0x83).unwrap() };
        let record = record(&[entry, Entry { first: 0x0403_0201, count: 0x0807_0605, kind: 0xc, bootable: false }]);
        assert_eq!(record[446..462], [0x80, 254, 255, 255, 0x83, 254, 255, 255, 0, 8, 0, 0, 2, 0, 0, 0]);
        assert_eq!(record[462..478], [0, 254, 255, 255, 0xc, 254, 255, 255, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(record[..446].iter().chain(&record[478..510]).all(|byte| *byte == 0));
        assert_eq!(record[510..], [0x55, 0xaa]);
    }

    #[test]
    fn what_has_no_place_in_32_bits_is_refused() {
        assert_eq!(Entry::of_bytes(511, 1, 1), None);
        assert_eq!(Entry::of_bytes(SECTOR << 32, 1, 1), None);
        assert_eq!(Entry::of_bytes(0, (SECTOR << 32) - 511, 1), None);
        assert!(Entry::of_bytes(0, (SECTOR << 32) - 512, 1).is_some());
    }
}
