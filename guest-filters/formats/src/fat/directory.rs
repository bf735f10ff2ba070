//! Entries of directories, and their names.

use rbdkit_filter_sdk::image::{Error, Fields};

/// Bytes of an entry.
const ENTRY: usize = 32;

const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// Attributes of an entry that has a part of a long name.
const LONG: u8 = 0x0f;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub is_directory: bool,
    pub first: u32,
    pub size: u64,
}

/// Looks for a name among the entries of a directory. Case does not matter.
pub fn find(bytes: &[u8], name: &str) -> Result<Option<Entry>, Error> {
    let wanted = folded(name);
    let mut long = Long::default();
    for entry in bytes.chunks_exact(ENTRY) {
        let fields = Fields::little(entry, "the entry of a directory");
        let attributes = fields.u8(11)?;
        match entry[0] {
            0 => break,
            0xe5 => long = Long::default(),
            _ if attributes & 0x3f == LONG => long.add(entry),
            _ if attributes & LABEL != 0 => long = Long::default(),
            _ => {
                let short = short_name(entry);
                let full = std::mem::take(&mut long).name(entry);
                if folded(&short) != wanted && full.as_deref().map(folded).as_ref() != Some(&wanted) {
                    continue;
                }
                return Ok(Some(Entry {
                    name: full.unwrap_or(short),
                    is_directory: attributes & DIRECTORY != 0,
                    first: u32::from(fields.u16(20)?) << 16 | u32::from(fields.u16(26)?),
                    size: fields.u32(28)?.into(),
                }));
            }
        }
    }
    Ok(None)
}

fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).collect()
}

/// The name of eight and three bytes. A byte that is not ASCII depends on a code page that the file
/// system does not name: it becomes U+FFFD.
fn short_name(entry: &[u8]) -> String {
    let part = |bytes: &[u8], is_lower: bool| {
        let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let letter = |byte: &u8| match byte {
            _ if !byte.is_ascii() => '\u{fffd}',
            _ if is_lower => byte.to_ascii_lowercase().into(),
            _ => char::from(*byte),
        };
        bytes[..end].iter().map(letter).collect::<String>()
    };
    let (base, extension) = (part(&entry[..8], entry[12] & 8 != 0), part(&entry[8..11], entry[12] & 16 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// A long name, whose parts come in front of its entry, the last part first.
#[derive(Default)]
struct Long {
    /// The parts in the order in which they came.
    parts: Vec<[u16; 13]>,
    checksum: u8,
    /// The number that the next part has to have.
    next: u8,
}

impl Long {
    fn add(&mut self, entry: &[u8]) {
        let (order, checksum) = (entry[0] & 0x3f, entry[13]);
        if entry[0] & 0x40 != 0 {
            *self = Long { parts: Vec::new(), checksum, next: order };
        }
        // A name has 255 letters, in 20 parts.
        if order == 0 || order > 20 || order != self.next || checksum != self.checksum {
            *self = Long::default();
            return;
        }
        let mut part = [0; 13];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
        for (letter, at) in part.iter_mut().zip(places) {
            *letter = u16::from_le_bytes([entry[at], entry[at + 1]]);
        }
        self.parts.push(part);
        self.next -= 1;
    }

    /// The name, if all its parts are there and belong to this entry.
    fn name(self, entry: &[u8]) -> Option<String> {
        let checksum = entry[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.next != 0 || self.parts.is_empty() || self.checksum != checksum {
            return None;
        }
        let letters: Vec<u16> = self.parts.into_iter().rev().flatten().take_while(|letter| *letter != 0).collect();
        Some(String::from_utf16_lossy(&letters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_long_name_that_is_missing_leaves_the_short_name() {
        let mut short = [0; 32];
        short[..12].copy_from_slice(b"LONGNA~1TXT\x20");
        short[26] = 2;
        let checksum = short[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let part = |order: u8, text: &str| {
            let mut entry = [0xffu8; 32];
            (entry[0], entry[11], entry[12], entry[13]) = (order, LONG, 0, checksum);
            let letters: Vec<u16> = text.encode_utf16().chain([0]).chain([0xffff; 13]).collect();
            for (n, at) in (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]).enumerate() {
                entry[at..at + 2].copy_from_slice(&letters[n].to_le_bytes());
            }
            entry
        };
        let full = [part(0x42, "e.txt"), part(1, "long names ar"), short].concat();
        assert_eq!(find(&full, "LONG names ARe.txt").unwrap().unwrap().name, "long names are.txt");
        assert!(find(&full, "longna~1.txt").unwrap().is_some());
        for damaged in [[part(0x42, "e.txt"), short].concat(), [part(1, "long names ar"), short].concat()] {
            assert_eq!(find(&damaged, "longna~1.txt").unwrap().unwrap().name, "LONGNA~1.TXT");
            assert_eq!(find(&damaged, "long names are.txt"), Ok(None));
        }
    }
}
