use crate::guid::Guid;
use std::rc::Rc;

use super::*;
use crate::checksum::crc32;
use crate::testing::{Dir, piped, read_all, sample, source};

const MIB: usize = 1 << 20;

/// A disk of 16 MiB that sfdisk has partitioned by this script.
fn sfdisk(name: &str, script: &str) -> Vec<u8> {
    let dir = Dir::new(name);
    let disk = dir.file("disk", &sample(16 * MIB, 9));
    let all = format!("{script}\n");
    piped("/sbin/sfdisk", &["-q", "--wipe", "always", &disk], all.as_bytes());
    std::fs::read(disk).unwrap()
}

const GPT: &str = "label: gpt\n\
    size=1MiB, type=U, name=\"EFI system\"\n\
    size=3MiB, type=L, name=root, uuid=11111111-2222-3333-4444-555555555555\n\
    size=2MiB, type=L, name=\"\u{e4}\"";

fn chosen(disk: &[u8], choice: Choice) -> Result<(u64, Vec<u8>), String> {
    open_chosen(source(disk), Options::default(), &choice)
        .and_then(|part| Ok((part.start(), read_all(&part)?)))
        .map_err(|error| error.to_string())
}

fn table(disk: &[u8]) -> Result<Table, String> {
    Table::read(disk_of(disk).as_ref(), Options::default()).map_err(|error| error.to_string())
}

fn disk_of(disk: &[u8]) -> Rc<dyn Source> {
    source(disk)
}

#[test]
fn a_gpt_partition_is_chosen_by_number_label_guid_and_type() {
    let disk = sfdisk("gpt", GPT);
    let second = (2 * MIB as u64, disk[2 * MIB..5 * MIB].to_vec());
    assert!(chosen(&disk, Choice::Number(2)).as_ref() == Ok(&second));
    assert!(chosen(&disk, Choice::Label("root".into())).as_ref() == Ok(&second));
    let guid = Guid::parse("11111111-2222-3333-4444-555555555555").unwrap();
    assert!(chosen(&disk, Choice::Guid(guid)).as_ref() == Ok(&second));
    assert_eq!(guid.to_string(), "11111111-2222-3333-4444-555555555555");
    let efi = chosen(&disk, Choice::Type(Choice::parse_type("efi").unwrap())).unwrap();
    assert_eq!((efi.0, efi.1.len()), (MIB as u64, MIB));
    assert_eq!(chosen(&disk, Choice::Label("\u{e4}".into())).unwrap().0, 5 * MIB as u64);
    let linux = Choice::Type(Choice::parse_type("0fc63daf-8483-4772-8e79-3d69d8477de4").unwrap());
    let two = "partitions 2 and 3 both have the type 0FC63DAF-8483-4772-8E79-3D69D8477DE4: choose with partition=2 or \
               partition=3";
    assert_eq!(chosen(&disk, linux).unwrap_err(), two);
    let none = "there is no partition with the number 4; there are 1 ('EFI system'), 2 ('root'), 3 ('\u{e4}')";
    assert_eq!(chosen(&disk, Choice::Number(4)).unwrap_err(), none);
    assert!(probe(&disk).unwrap());
    let report = report(&source(&disk)).unwrap();
    assert_eq!(report.dangers, [""; 0]);
    assert_eq!(report.facts[0], ("table", "GPT".into()));
}

#[test]
fn logical_partitions_are_counted_from_five() {
    let script = "label: dos\nsize=1MiB, type=83\nsize=10MiB, type=5\nsize=1MiB, type=c\nsize=1MiB, type=c";
    let disk = sfdisk("mbr", &format!("{script}\nsize=2MiB, type=83\nsize=3MiB, type=82"));
    let numbers: Vec<u32> = table(&disk).unwrap().partitions.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let six = chosen(&disk, Choice::Number(6)).unwrap();
    assert_eq!(six.1.len(), 3 * MIB);
    assert!(six.1[..] == disk[six.0 as usize..][..3 * MIB]);
    assert_eq!(chosen(&disk, Choice::Type(Type::Mbr(0x82))).unwrap().0, six.0);
    let refused = "partition 2 is an extended partition, which holds the logical ones from 5 on";
    assert_eq!(chosen(&disk, Choice::Number(2)).unwrap_err(), refused);
    assert!(probe(&disk).unwrap());
    assert_eq!(table(&disk).unwrap().dangers, [""; 0]);
}

/// An entry of an MBR.
fn entry(table: &mut [u8], number: usize, kind: u8, start: u32, size: u32) {
    let at = 446 + number * 16;
    table[at + 4] = kind;
    table[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    table[at + 12..at + 16].copy_from_slice(&size.to_le_bytes());
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
}

#[test]
fn an_mbr_that_is_wrong_gives_a_line() {
    let mut disk = vec![0; MIB];
    assert_eq!(table(&disk).unwrap_err(), "the disk has no partition table: no MBR, GPT or Apple map");
    assert_eq!(table(&[0; 100]).unwrap_err(), "a disk of 100 bytes has no partition table");
    entry(&mut disk[..512], 0, 5, 8, 1000);
    assert_eq!(table(&disk).unwrap_err(), "the table of logical partition 5, in sector 8, has no signature");
    entry(&mut disk[8 * 512..], 0, 0x83, 1, 10);
    entry(&mut disk[8 * 512..], 1, 5, 0, 10);
    assert_eq!(table(&disk).unwrap_err(), "the logical partitions are a loop: the table in sector 8 comes again");
    entry(&mut disk[8 * 512..], 1, 5, 100, 10);
    entry(&mut disk[108 * 512..], 1, 5, 0, 10);
    assert_eq!(table(&disk).unwrap_err(), "the logical partitions are a loop: the table in sector 8 comes again");
    entry(&mut disk[8 * 512..], 1, 5, u32::MAX, 10);
    let beyond = "the table of logical partition 6 is in sector 4294967303, beyond the end of the disk";
    assert_eq!(table(&disk).unwrap_err(), beyond);
    let mut disk = vec![0; MIB];
    entry(&mut disk[..512], 0, 5, 1, 2000);
    for at in 1..300 {
        entry(&mut disk[at * 512..], 0, 0x83, 1, 1);
        entry(&mut disk[at * 512..], 1, 5, at as u32, 1);
    }
    assert_eq!(table(&disk).unwrap_err(), "there are more than 128 tables of logical partitions");
    let mut disk = vec![0; MIB];
    entry(&mut disk[..512], 0, 0x83, 10, u32::MAX);
    entry(&mut disk[..512], 1, 0x83, 20, 30);
    let end = (10 + u64::from(u32::MAX)) * 512;
    let dangers = [
        "partitions 1 and 2 overlap".into(),
        format!("partition 1 ends at {end}, beyond the end of the disk, 1048576"),
    ];
    assert_eq!(table(&disk).unwrap().dangers, dangers);
    let cut = "partition 1 has 2199023255040 bytes from 5120 on, and the disk ends after 1048576 bytes";
    assert_eq!(chosen(&disk, Choice::Number(1)).unwrap_err(), cut);
}

/// Writes a number into a GPT's header at sector `at` and corrects the checksum.
fn change_header(disk: &mut [u8], at: usize, field: usize, bytes: &[u8]) {
    let header = &mut disk[at * 512..][..92];
    header[field..field + bytes.len()].copy_from_slice(bytes);
    header[16..20].fill(0);
    let crc = crc32(header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_damaged_gpt_is_read_from_its_backup_and_two_that_disagree_are_refused() {
    let whole = sfdisk("gpt-backup", GPT);
    let last = whole.len() / 512 - 1;
    let mut disk = whole.clone();
    disk[512 + 60] ^= 1;
    let danger = "the GPT cannot be used, its backup is: the GPT header in sector 1 has a wrong checksum";
    assert_eq!(table(&disk).unwrap().dangers, [danger]);
    assert!(chosen(&disk, Choice::Number(2)) == chosen(&whole, Choice::Number(2)));
    disk[512..520].fill(0);
    assert!(table(&disk).unwrap().dangers[0].ends_with("sector 1 has no signature"));
    disk[last * 512 + 60] ^= 1;
    let none = "the GPT header in sector 1 has no signature; and the GPT header in sector 32767 has a wrong checksum";
    assert_eq!(table(&disk).unwrap_err(), none);
    let mut disk = whole.clone();
    disk[1024 + 56] ^= 1;
    let danger = "the GPT header in sector 1 has entries with a wrong checksum";
    assert!(table(&disk).unwrap().dangers[0].ends_with(danger));
    let mut disk = whole.clone();
    disk[last * 512] = 0;
    let danger = "the backup of the GPT cannot be used: the GPT header in sector 32767 has no signature";
    assert_eq!(table(&disk).unwrap().dangers, [danger]);

    // The backup says that the second partition begins one sector later.
    let mut disk = whole.clone();
    let entries_at = (last - 32) * 512;
    disk[entries_at + 128 + 32] += 1;
    let crc = crc32(&disk[entries_at..entries_at + 128 * 128]);
    change_header(&mut disk, last, 88, &crc.to_le_bytes());
    let refused = "the GPT and its backup have different partitions: choose with partition-gpt=primary or \
                   partition-gpt=backup";
    assert_eq!(chosen(&disk, Choice::Number(2)).unwrap_err(), refused);
    assert_eq!(report(&source(&disk)).unwrap().dangers, [refused]);
    let start = |trust| {
        let options = Options { trust, ..Options::default() };
        open_chosen(source(&disk), options, &Choice::Number(2)).map(|part| part.start())
    };
    assert_eq!((start(Trust::Primary), start(Trust::Backup)), (Ok(2 << 20), Ok((2 << 20) + 512)));
}

#[test]
fn numbers_in_a_gpt_that_lie_give_a_line() {
    let whole = sfdisk("gpt-lies", GPT);
    let refused = |field: usize, bytes: &[u8]| {
        let mut disk = whole.clone();
        change_header(&mut disk, 1, field, bytes);
        let options = Options { trust: Trust::Primary, ..Options::default() };
        Table::read(&disk, options).unwrap_err().to_string()
    };
    let header = "the GPT header in sector 1";
    assert_eq!(refused(12, &[91, 0]), format!("{header} says that it has 91 bytes; 92 to 512 are possible"));
    assert_eq!(refused(12, &[0xff; 4]), format!("{header} says that it has 4294967295 bytes; 92 to 512 are possible"));
    assert_eq!(refused(24, &[2]), format!("{header} says that it is in sector 2"));
    let entries =
        |count: u64, size: u64| format!("{header} has {count} entries of {size} bytes; at most 1048576 bytes are read");
    assert_eq!(refused(80, &[0xff; 4]), entries(u32::MAX.into(), 128));
    assert_eq!(refused(84, &[0xff; 4]), entries(128, u32::MAX.into()));
    assert_eq!(refused(84, &[0, 0, 0, 0]), entries(128, 0));
    assert_eq!(refused(72, &[0xff; 8]), format!("{header} has entries in sector 18446744073709551615, beyond the end"));
    assert!(refused(88, &[0; 4]).ends_with("has entries with a wrong checksum"));
    let mut disk = whole.clone();
    disk[1024 + 40..1024 + 48].fill(0xff);
    let crc = crc32(&disk[1024..1024 + 128 * 128]);
    change_header(&mut disk, 1, 88, &crc.to_le_bytes());
    let options = Options { trust: Trust::Primary, ..Options::default() };
    let line = Table::read(&disk, options).unwrap_err().to_string();
    assert_eq!(line, format!("{header} has partition 1 from sector 2048 to 18446744073709551615"));
    let mut hybrid = whole.clone();
    entry(&mut hybrid[..512], 0, 0x83, 2048, 10);
    assert!(table(&hybrid).unwrap().dangers[0].starts_with("the MBR does not protect the GPT"));
}

/// A disk with a partition map of three entries, in blocks of `block` bytes.
fn apple(block: usize) -> Vec<u8> {
    let mut disk = sample(64 * block, 4);
    disk[..4].copy_from_slice(&[b'E', b'R', (block >> 8) as u8, block as u8]);
    let entries =
        [("Apple", "Apple_partition_map", 1, 3), ("boot", "Apple_HFS", 8, 10), ("free", "Apple_Free", 18, 46)];
    for (n, (name, kind, start, size)) in entries.into_iter().enumerate() {
        let entry = &mut disk[(n + 1) * block..(n + 2) * block];
        entry.fill(0);
        entry[..2].copy_from_slice(b"PM");
        entry[4..8].copy_from_slice(&3u32.to_be_bytes());
        entry[8..12].copy_from_slice(&(start as u32).to_be_bytes());
        entry[12..16].copy_from_slice(&(size as u32).to_be_bytes());
        entry[16..16 + name.len()].copy_from_slice(name.as_bytes());
        entry[48..48 + kind.len()].copy_from_slice(kind.as_bytes());
    }
    disk
}

#[test]
fn an_apple_partition_map_is_read() {
    for block in [512, 2048] {
        let disk = apple(block);
        assert!(probe(&disk).unwrap());
        let boot = (8 * block as u64, disk[8 * block..18 * block].to_vec());
        assert!(chosen(&disk, Choice::Number(2)).as_ref() == Ok(&boot));
        assert!(chosen(&disk, Choice::Label("boot".into())).as_ref() == Ok(&boot));
        assert!(chosen(&disk, Choice::Type(Choice::parse_type("Apple_HFS").unwrap())).as_ref() == Ok(&boot));
    }
    let mut disk = apple(512);
    disk[512 + 4..512 + 8].fill(0xff);
    let line = "entry 1 of the Apple partition map says that there are 4294967295 entries; the first says 4294967295, \
                and at most 256 are read";
    assert_eq!(table(&disk).unwrap_err(), line);
    let mut disk = apple(512);
    disk[1024] = 0;
    assert_eq!(table(&disk).unwrap_err(), "entry 2 of the Apple partition map has no signature");
}

#[test]
fn a_disk_that_is_cut_anywhere_is_read_without_a_panic() {
    let disk = sfdisk("cut", GPT);
    for length in (0..40_000).step_by(97).chain([512, 1024, disk.len() - 1]) {
        let _ = table(&disk[..length]);
        let _ = probe(&disk[..length].to_vec());
    }
}

#[test]
fn the_first_sector_of_a_file_system_is_no_table() {
    let dir = Dir::new("fat");
    let path = dir.file("fat", &vec![0; 4 * MIB]);
    crate::testing::run("/sbin/mkfs.fat", &[&path]);
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes[510..512], [0x55, 0xaa]);
    assert!(!probe(&bytes).unwrap());
}
