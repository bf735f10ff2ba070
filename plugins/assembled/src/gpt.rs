//! Partition tables of the new kind: a protective master boot record, a header and the entries at
//! the beginning of the disk, and the entries and a header again at its end.

use crate::guid::Guid;
use crate::{SECTOR, mbr};
use crc32fast::hash as crc32;

/// The size of an entry in bytes.
const ENTRY: u64 = 128;

/// A table has room for a multiple of this number of partitions: clients expect 128.
const ENTRIES: u64 = 128;

/// The size of a header in bytes.
const HEADER: usize = 92;

/// The longest name of a partition, in UTF-16 code units.
const NAME: usize = 36;

/// A partition.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Where it begins on the disk, in bytes: a multiple of 512.
    pub start: u64,
    /// Bytes, not 0.
    pub length: u64,
    /// What is in it.
    pub kind: Guid,
    /// Its own identifier.
    pub unique: Guid,
    /// Its name, which is left out if it is not ASCII or has 36 bytes or more.
    pub name: String,
    /// Whether an old BIOS should boot from it.
    pub bootable: bool,
}

/// The tables at both ends of a disk.
#[derive(Debug)]
pub struct Tables {
    /// The first bytes of the disk.
    pub first: Vec<u8>,
    /// The last bytes of the disk.
    pub last: Vec<u8>,
}

/// How many bytes the tables of `count` partitions take at the beginning of the disk. At its end
/// they take a sector less.
pub fn first_length(count: usize) -> u64 {
    2 * SECTOR + entries_length(count)
}

/// How many bytes the tables of `count` partitions take at the end of the disk.
pub fn last_length(count: usize) -> u64 {
    SECTOR + entries_length(count)
}

fn entries_length(count: usize) -> u64 {
    room(count) * ENTRY
}

/// The number of partitions that the table has room for.
fn room(count: usize) -> u64 {
    (count.max(1) as u64).next_multiple_of(ENTRIES)
}

/// The tables of a disk of `size` bytes, which is a multiple of 512 and includes the tables.
pub fn tables(partitions: &[Partition], size: u64) -> Tables {
    let sectors = size / SECTOR;
    let mut entries = vec![0; entries_length(partitions.len()) as usize];
    for (place, partition) in entries.as_chunks_mut::<{ ENTRY as usize }>().0.iter_mut().zip(partitions) {
        *place = entry(partition);
    }
    let entries_sectors = entries_length(partitions.len()) / SECTOR;
    let header = |own: u64, other: u64, first_entry: u64| {
        let mut header = [0; SECTOR as usize];
        let numbers: [u64; 4] = [own, other, 2 + entries_sectors, sectors.saturating_sub(entries_sectors + 2)];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&[0, 0, 1, 0]);
        header[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
        for (place, number) in header[24..56].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        // The disk's own identifier, bytes 56 to 71, stays zero, as nbdkit leaves it.
        header[72..80].copy_from_slice(&first_entry.to_le_bytes());
        header[80..84].copy_from_slice(&(room(partitions.len()) as u32).to_le_bytes());
        header[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        // Its own checksum counts as zero in it.
        let sum = crc32(&header[..HEADER]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    };
    let end = sectors.saturating_sub(1);
    let mut first = protective(sectors).to_vec();
    first.extend(header(1, end, 2));
    first.extend(&entries);
    let last = header(end, 1, end - entries_sectors);
    Tables { first, last: [entries, last.to_vec()].concat() }
}

/// The record that tells old programs that the whole disk is in use.
fn protective(sectors: u64) -> mbr::Record {
    let count = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    mbr::record(&[mbr::Entry { first: 1, count, kind: mbr::PROTECTIVE, bootable: false }])
}

fn entry(partition: &Partition) -> [u8; ENTRY as usize] {
    let mut bytes = [0; ENTRY as usize];
    let last = (partition.start + partition.length - 1) / SECTOR;
    bytes[..16].copy_from_slice(&partition.kind.0);
    bytes[16..32].copy_from_slice(&partition.unique.0);
    bytes[32..40].copy_from_slice(&(partition.start / SECTOR).to_le_bytes());
    bytes[40..48].copy_from_slice(&last.to_le_bytes());
    // Attribute 2: bootable by an old BIOS.
    bytes[48] = if partition.bootable { 4 } else { 0 };
    if partition.name.is_ascii() && partition.name.len() < NAME {
        for (place, unit) in bytes[56..].as_chunks_mut::<2>().0.iter_mut().zip(partition.name.encode_utf16()) {
            *place = unit.to_le_bytes();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue_is_right() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(&[0; 32]), 0x190a_55ad);
    }

    fn number(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn small(bytes: &[u8], at: usize) -> u64 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
    }

    fn partition(start: u64, length: u64) -> Partition {
        let unique = Guid([7; 16]);
        Partition { start, length, kind: Guid::LINUX, unique, name: "a.img".into(), bootable: true }
    }

    /// Checks a header against the specification.
    fn check(header: &[u8], entries: &[u8], own: u64, other: u64, first_entry: u64) {
        assert_eq!(&header[..8], b"EFI PART");
        assert_eq!((small(header, 8), small(header, 12)), (0x1_0000, 92));
        let mut unsummed = header[..92].to_vec();
        unsummed[16..20].fill(0);
        assert_eq!(small(header, 16), crc32(&unsummed).into());
        assert_eq!([number(header, 24), number(header, 32), number(header, 72)], [own, other, first_entry]);
        assert_eq!(small(header, 88), crc32(entries).into());
        assert!(header[92..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn both_tables_of_a_disk_agree() {
        for count in [1, 128, 129, 300] {
            let first = first_length(count);
            let partitions: Vec<_> = (0..count as u64).map(|n| partition(first + n * 4096, 513)).collect();
            let size = first + count as u64 * 4096 + last_length(count);
            let sectors = size / SECTOR;
            let tables = tables(&partitions, size);
            assert_eq!(tables.first.len() as u64, first);
            assert_eq!(tables.last.len() as u64, last_length(count));
            let entries = &tables.first[1024..];
            let of_last = tables.last.len() - 512;
            assert_eq!(entries, &tables.last[..of_last]);
            check(&tables.first[512..1024], entries, 1, sectors - 1, 2);
            check(&tables.last[of_last..], entries, sectors - 1, 1, sectors - last_length(count) / SECTOR);
            assert_eq!(number(&tables.first, 512 + 40), first / SECTOR);
            assert_eq!(number(&tables.first, 512 + 48), sectors - last_length(count) / SECTOR - 1);
            let last = &entries[(count - 1) * 128..][..128];
            let start = partitions[count - 1].start / SECTOR;
            assert_eq!([number(last, 32), number(last, 40), number(last, 48)], [start, start + 1, 4]);
            assert_eq!(&last[56..66], b"a\0.\0i\0m\0g\0");
        }
    }

    #[test]
    fn a_long_or_foreign_name_is_left_out() {
        for (name, is_kept) in [("x".repeat(35), true), ("x".repeat(36), false), ("ä".into(), false)] {
            let bytes = entry(&Partition { name: name.clone(), ..partition(1024, 512) });
            assert_eq!(bytes[56] != 0, is_kept, "{name}");
        }
    }

    #[test]
    fn the_protective_record_covers_what_32_bits_can_say() {
        assert_eq!(protective(1 << 40)[0x1be + 12..][..4], [0xff; 4]);
        assert_eq!(protective(101)[0x1be + 4..][..12], [0xee, 254, 255, 255, 1, 0, 0, 0, 100, 0, 0, 0]);
    }
}
