//! Where everything is on the disk, and the sectors that say so.
//!
//! | sectors | what |
//! |---|---|
//! | 0 | master boot record with one partition |
//! | 2048 | the partition: boot sector |
//! | 2049 | numbers of free clusters |
//! | 2054 | the boot sector again |
//! | 2080 | file allocation table |
//! | after it | the same table again |
//! | after that | clusters of 16 KiB: directories, then files, then free ones |
//!
//! Every file and directory is in one piece.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_assembled::mbr::{self, Entry};
use rbdkit_assembled::{AssembledDisk, Backing, Regions, SECTOR, TooLarge};

use crate::label::Label;
use crate::table::{self, Clusters, ENTRY};
use crate::tree::Tree;

const SECTORS_PER_CLUSTER: u64 = 32;
const CLUSTER: u64 = SECTORS_PER_CLUSTER * SECTOR;

/// Sectors before the partition, and between its beginning and the first table.
const PARTITION: u64 = 2048;
const RESERVED: u64 = 32;

/// Where the first table begins, in bytes.
const TABLE: u64 = (PARTITION + RESERVED) * SECTOR;

/// The first cluster has this number.
const FIRST_CLUSTER: u64 = 2;

/// The most clusters. Numbers have 28 bits, and the highest mean something else.
const MAX_CLUSTERS: u64 = 0x0fff_fff5 - FIRST_CLUSTER;

/// The mark of the last cluster of a file.
const END_OF_FILE: u32 = 0x0fff_ffff;

/// The type byte of a partition with FAT32 that is addressed by sectors.
const FAT32: u8 = 0x0c;

/// Why there can be no such disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeError {
    TooLargeForFat,
    TooLargeForMbr,
    SizeTooSmall { needed: u64 },
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeError::TooLargeForFat => f.write_str("disk image is too large for the FAT32 disk format"),
            VolumeError::TooLargeForMbr => f.write_str("disk image is too large for the MBR disk format"),
            VolumeError::SizeTooSmall { needed } => {
                write!(f, "filesystem is larger than \"size\" bytes: the files need at least {needed}")
            }
        }
    }
}

impl From<TooLarge> for VolumeError {
    fn from(_: TooLarge) -> VolumeError {
        VolumeError::TooLargeForFat
    }
}

/// How many clusters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    used: u64,
    all: u64,
}

impl Count {
    /// With what is used, and the size of the disk in bytes if one was given.
    fn new(used: u64, size: Option<u64>) -> Result<Count, VolumeError> {
        let all = match size {
            None => used,
            Some(size) => {
                let room = size.saturating_sub(TABLE);
                // As if all of the room were clusters, as nbdkit reckons.
                let tables = 2 * table_bytes(room / CLUSTER);
                let all = room.saturating_sub(tables) / CLUSTER;
                if all < used {
                    return Err(VolumeError::SizeTooSmall { needed: TABLE + 2 * table_bytes(used) + used * CLUSTER });
                }
                all
            }
        };
        if all > MAX_CLUSTERS {
            return Err(VolumeError::TooLargeForFat);
        }
        Ok(Count { used, all })
    }

    /// Bytes of a table.
    fn table(self) -> u64 {
        table_bytes(self.all)
    }

    /// Sectors of the partition.
    fn sectors(self) -> u64 {
        RESERVED + 2 * self.table() / SECTOR + self.all * SECTORS_PER_CLUSTER
    }
}

/// Bytes of a table for this number of clusters, in whole clusters.
fn table_bytes(clusters: u64) -> u64 {
    ((clusters + FIRST_CLUSTER) * 4).next_multiple_of(CLUSTER)
}

/// The disk with these files.
///
/// # Errors
/// It would be too large, or the size that was given is too small.
pub(crate) fn disk(tree: &Tree, label: Label, size: Option<u64>) -> Result<AssembledDisk, VolumeError> {
    let mut next = FIRST_CLUSTER;
    let mut table = vec![0x0fff_fff8, END_OF_FILE];
    let mut place = |bytes: u64| -> Result<u32, VolumeError> {
        let (first, count) = (next, bytes.div_ceil(CLUSTER));
        next += count;
        if next - FIRST_CLUSTER > MAX_CLUSTERS {
            return Err(VolumeError::TooLargeForFat);
        }
        // Each cluster names the next one.
        table.extend((first + 1..next).map(|cluster| cluster as u32));
        table.extend((count > 0).then_some(END_OF_FILE));
        Ok(if count > 0 { first as u32 } else { 0 })
    };
    let lengths = (0..tree.directories.len()).map(|number| table::length(tree, number) * ENTRY as u64);
    let directories = lengths.map(&mut place).collect::<Result<Vec<u32>, _>>()?;
    let files = tree.files.iter().map(|file| place(file.size.into())).collect::<Result<Vec<u32>, _>>()?;
    let clusters = Clusters { directories, files };
    let count = Count::new(next - FIRST_CLUSTER, size)?;
    let table: Arc<[u8]> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let mut regions = Regions::default();
    regions.push_data(master_record(count)?.to_vec().into())?;
    regions.pad_until(PARTITION * SECTOR)?;
    let boot: Arc<[u8]> = boot_sector(label, count)?.to_vec().into();
    regions.push_data(Arc::clone(&boot))?;
    regions.push_data(information(count).to_vec().into())?;
    regions.pad_until((PARTITION + 6) * SECTOR)?;
    regions.push_data(boot)?;
    regions.pad_until(TABLE)?;
    for copy in 1..=2 {
        regions.push_data(Arc::clone(&table))?;
        regions.pad_until(TABLE + copy * count.table())?;
    }
    for number in 0..tree.directories.len() {
        regions.push_data(table::table(tree, number, label, &clusters).into())?;
        pad(&mut regions)?;
    }
    for (number, file) in tree.files.iter().enumerate() {
        regions.push_file(number, file.size.into())?;
        pad(&mut regions)?;
    }
    regions.pad_until((PARTITION + count.sectors()) * SECTOR)?;
    // What is less than a cluster belongs to no partition.
    regions.pad_until(size.unwrap_or(0))?;
    let files: Vec<PathBuf> = tree.files.iter().map(|file| file.path.clone()).collect();
    Ok(AssembledDisk::new(regions, files.into_iter().map(Backing::Named).collect()).read_only())
}

/// Pads to a whole cluster. The first one begins at a multiple of 16 KiB.
fn pad(regions: &mut Regions) -> Result<(), TooLarge> {
    regions.pad_to_multiple_of(CLUSTER)
}

const _: () = assert!(TABLE.is_multiple_of(CLUSTER));

fn master_record(count: Count) -> Result<mbr::Record, VolumeError> {
    let entry = Entry::of_bytes(PARTITION * SECTOR, count.sectors() * SECTOR, FAT32);
    Ok(mbr::record(&[entry.ok_or(VolumeError::TooLargeForMbr)?]))
}

fn boot_sector(label: Label, count: Count) -> Result<[u8; 512], VolumeError> {
    let sectors = u32::try_from(count.sectors()).map_err(|_| VolumeError::TooLargeForMbr)?;
    let mut boot = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
    // A jump over the table of numbers, and the name that is said to be understood best.
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, b"MSWIN4.1");
    put(11, &(SECTOR as u16).to_le_bytes());
    put(13, &[SECTORS_PER_CLUSTER as u8]);
    put(14, &(RESERVED as u16).to_le_bytes());
    // Two tables; no fixed root directory and no 16-bit sizes; a hard disk.
    put(16, &[2, 0, 0, 0, 0, 0xf8]);
    // The geometry that counts nothing: 63 sectors, 255 heads.
    put(24, &63_u16.to_le_bytes());
    put(26, &255_u16.to_le_bytes());
    put(28, &(PARTITION as u32).to_le_bytes());
    put(32, &sectors.to_le_bytes());
    put(36, &((count.table() / SECTOR) as u32).to_le_bytes());
    put(44, &(FIRST_CLUSTER as u32).to_le_bytes());
    // The sector of the numbers of free clusters, and of the copy of this one.
    put(48, &1_u16.to_le_bytes());
    put(50, &6_u16.to_le_bytes());
    // The first hard disk; an identifier, a label and a type follow.
    put(64, &[0x80, 0, 0x29]);
    put(67, &0x0102_0304_u32.to_le_bytes());
    put(71, &label.0);
    put(82, b"FAT32   ");
    put(510, &[0x55, 0xaa]);
    Ok(boot)
}

/// The sector with the numbers of free clusters.
fn information(count: Count) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..4].copy_from_slice(b"RRaA");
    sector[484..488].copy_from_slice(b"rrAa");
    let free = count.all - count.used;
    // All ones: unknown, if there is no free cluster to begin with.
    let first_free = if free == 0 { u32::MAX } else { (FIRST_CLUSTER + count.used) as u32 };
    sector[488..492].copy_from_slice(&(free as u32).to_le_bytes());
    sector[492..496].copy_from_slice(&first_free.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Directory, File, Times};

    fn tree(sizes: &[u32]) -> Tree {
        let file = |(number, size): (usize, &u32)| File {
            name: format!("file {number}"),
            path: format!("/none/{number}").into(),
            size: *size,
            times: Times::default(),
        };
        let root = Directory {
            name: String::new(),
            parent: 0,
            times: Times::default(),
            directories: Vec::new(),
            files: (0..sizes.len()).collect(),
        };
        Tree { directories: vec![root], files: sizes.iter().enumerate().map(file).collect() }
    }

    #[test]
    fn without_a_size_the_disk_holds_just_the_files() {
        // A directory and 1 + 0 + 2 clusters of files; both tables take a cluster.
        let disk = disk(&tree(&[1, 0, 16385]), Label::default(), None).unwrap();
        assert_eq!(disk.size(), TABLE + 2 * CLUSTER + 4 * CLUSTER);
    }

    #[test]
    fn a_size_that_was_given_is_the_disks_whatever_it_is() {
        for size in [3 << 20, (3 << 20) + 1, 10_000_001, 1 << 40] {
            assert_eq!(disk(&tree(&[100_000]), Label::default(), Some(size)).unwrap().size(), size);
        }
        for size in [1, TABLE, TABLE + 2 * CLUSTER + CLUSTER] {
            let error = disk(&tree(&[100_000]), Label::default(), Some(size)).unwrap_err();
            let needed = TABLE + 2 * CLUSTER + 8 * CLUSTER;
            assert_eq!(error, VolumeError::SizeTooSmall { needed });
            assert!(disk(&tree(&[100_000]), Label::default(), Some(needed)).is_ok());
        }
    }

    #[test]
    fn what_has_no_place_in_the_formats_is_refused() {
        let with = |size| disk(&tree(&[]), Label::default(), Some(size)).unwrap_err();
        assert_eq!(with(1 << 42), VolumeError::TooLargeForMbr);
        assert_eq!(with(i64::MAX as u64), VolumeError::TooLargeForFat);
    }

    #[test]
    fn the_sectors_count_what_is_free() {
        let sector = information(Count { used: 5, all: 105 });
        assert_eq!(sector[488..496], [100, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(information(Count { used: 5, all: 5 })[488..496], [0, 0, 0, 0, 255, 255, 255, 255]);
    }
}
