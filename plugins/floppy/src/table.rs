//! The entries of a directory on the disk.

use crate::label::Label;
use crate::names::{self, Names, ShortName};
use crate::time::fat_time;
use crate::tree::{Times, Tree};

/// The size of an entry in bytes.
pub(crate) const ENTRY: usize = 32;

/// UTF-16 code units in an entry of a long name.
const UNITS: usize = 13;

/// The attributes of an entry.
mod attribute {
    pub(super) const LABEL: u8 = 0x08;
    pub(super) const DIRECTORY: u8 = 0x10;
    pub(super) const ARCHIVE: u8 = 0x20;
    pub(super) const LONG_NAME: u8 = 0x0f;
}

/// The number of entries of a directory, which is known before any cluster is.
pub(crate) fn length(tree: &Tree, number: usize) -> u64 {
    let directory = &tree.directories[number];
    let directories = directory.directories.iter().map(|child| &tree.directories[*child].name);
    let files = directory.files.iter().map(|file| &tree.files[*file].name);
    let entries = |name: &String| 1 + long_entries(name.encode_utf16().count().min(names::MAX_UNITS)) as u64;
    // The label of the root, or the entries `.` and `..`.
    let own = if number == 0 { 1 } else { 2 };
    own + directories.chain(files).map(entries).sum::<u64>()
}

fn long_entries(units: usize) -> usize {
    units.div_ceil(UNITS)
}

/// Where directories and files begin, as numbers of clusters. An empty file begins at 0.
pub(crate) struct Clusters {
    pub(crate) directories: Vec<u32>,
    pub(crate) files: Vec<u32>,
}

/// The entries of a directory.
pub(crate) fn table(tree: &Tree, number: usize, label: Label, clusters: &Clusters) -> Vec<u8> {
    let directory = &tree.directories[number];
    let mut table = Vec::new();
    if number == 0 {
        table.extend(entry(&label.0, attribute::LABEL, Times::default(), 0, 0));
    } else {
        let parent = directory.parent;
        // The root has no number in the entry that leads up to it.
        let above = if parent == 0 { 0 } else { clusters.directories[parent] };
        let own = clusters.directories[number];
        table.extend(entry(b".          ", attribute::DIRECTORY, directory.times, own, 0));
        table.extend(entry(b"..         ", attribute::DIRECTORY, tree.directories[parent].times, above, 0));
    }
    let of_directories = directory.directories.iter().map(|child| &tree.directories[*child].name[..]);
    let of_files = directory.files.iter().map(|file| &tree.files[*file].name[..]);
    let mut names = names::convert(of_directories.chain(of_files)).into_iter();
    for (&child, names) in directory.directories.iter().zip(&mut names) {
        let times = tree.directories[child].times;
        table.extend(long_name(&names));
        table.extend(entry(&names.short, attribute::DIRECTORY, times, clusters.directories[child], 0));
    }
    for (&file, names) in directory.files.iter().zip(&mut names) {
        let first = clusters.files[file];
        let file = &tree.files[file];
        table.extend(long_name(&names));
        table.extend(entry(&names.short, attribute::ARCHIVE, file.times, first, file.size));
    }
    table
}

fn entry(name: &ShortName, attributes: u8, times: Times, cluster: u32, size: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    if times != Times::default() {
        let (created, modified) = (fat_time(times.created), fat_time(times.modified));
        entry[13] = created.rest;
        entry[14..16].copy_from_slice(&created.time.to_le_bytes());
        entry[16..18].copy_from_slice(&created.date.to_le_bytes());
        entry[18..20].copy_from_slice(&fat_time(times.accessed).date.to_le_bytes());
        entry[22..24].copy_from_slice(&modified.time.to_le_bytes());
        entry[24..26].copy_from_slice(&modified.date.to_le_bytes());
    }
    entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

/// The entries of a long name, the last part first.
fn long_name(names: &Names) -> Vec<u8> {
    let sum = names::checksum(&names.short);
    let parts = names.long.chunks(UNITS).enumerate();
    let last = long_entries(names.long.len());
    let mut entries = Vec::new();
    for (number, part) in parts.rev() {
        // A name that ends within its entry ends with a zero, and all ones follow.
        let mut units = [0xffff_u16; UNITS];
        units[..part.len()].copy_from_slice(part);
        if let Some(end) = units.get_mut(part.len()) {
            *end = 0;
        }
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let is_last = number + 1 == last;
        let mut entry = [0; ENTRY];
        entry[0] = (number + 1) as u8 | if is_last { 0x40 } else { 0 };
        entry[1..11].copy_from_slice(&bytes[..10]);
        entry[11] = attribute::LONG_NAME;
        entry[13] = sum;
        entry[14..26].copy_from_slice(&bytes[10..22]);
        entry[28..].copy_from_slice(&bytes[22..]);
        entries.extend(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Names {
        names::convert([name].into_iter()).remove(0)
    }

    /// The name in these entries, as a reader puts it together.
    fn read_back(entries: &[u8]) -> (String, Vec<u8>) {
        let mut units = Vec::new();
        let mut numbers = Vec::new();
        for entry in entries.chunks(ENTRY).rev() {
            numbers.push(entry[0]);
            let bytes = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
            units.extend(bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
        }
        let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
        assert!(units[end..].iter().skip(1).all(|unit| *unit == 0xffff));
        (String::from_utf16(&units[..end]).unwrap(), numbers)
    }

    #[test]
    fn a_long_name_is_read_back_whatever_its_length() {
        for length in [1, 12, 13, 14, 26, 27, 255] {
            let name: String = "äb\u{1f600}".chars().cycle().take(length).collect();
            let name = if name.encode_utf16().count() > 255 { "x".repeat(255) } else { name };
            let entries = long_name(&names(&name));
            let (read, numbers) = read_back(&entries);
            assert_eq!(read, name);
            let count = entries.len() / ENTRY;
            let expected: Vec<u8> = (1..=count as u8).map(|n| if n as usize == count { n | 0x40 } else { n }).collect();
            assert_eq!(numbers, expected);
        }
    }

    #[test]
    fn an_entry_has_its_fields_in_their_places() {
        let entry = entry(b"README  TXT", attribute::ARCHIVE, Times::default(), 0x12345, 0x0403_0201);
        assert_eq!(&entry[..12], b"README  TXT\x20");
        assert_eq!((&entry[20..22], &entry[26..]), (&[1, 0][..], &[0x45, 0x23, 1, 2, 3, 4][..]));
    }
}
