//! The feature bits of a header, and what they are called.

use rbdkit_filter_sdk::image::quoted;

/// Incompatible: the reference counts may be too low or too high.
pub const DIRTY: u64 = 1 << 0;
/// Incompatible: a program found the tables to be wrong.
pub const CORRUPT: u64 = 1 << 1;
/// Incompatible: the clusters are in another file.
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible: the header says how clusters are compressed.
pub const COMPRESSION_TYPE: u64 = 1 << 3;
/// Incompatible: an L2 entry has a second word, about 32 subclusters.
pub const EXTENDED_L2: u64 = 1 << 4;
/// Compatible: reference counts are written late.
pub const LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear: the dirty bitmaps are right.
pub const BITMAPS: u64 = 1 << 0;
/// Autoclear: the external data file is a raw image of the disk as well.
pub const RAW_EXTERNAL: u64 = 1 << 1;

const KNOWN_INCOMPATIBLE: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

/// A header has three words of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// A program that does not know one of these bits must not open the image.
    Incompatible = 0,
    /// A program may ignore these.
    Compatible = 1,
    /// A program that writes the image clears the bits that it does not know.
    Autoclear = 2,
}

/// A line of the image's table of feature names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub(super) word: u8,
    pub(super) bit: u8,
    pub(super) name: Vec<u8>,
}

/// The bits of `incompatible` that this decoder does not know, with the names that the image has
/// for them.
pub fn unknown(incompatible: u64, names: &[Name]) -> Vec<String> {
    let unknown = incompatible & !KNOWN_INCOMPATIBLE;
    (0..64).filter(|bit| unknown >> bit & 1 == 1).map(|bit| named(bit, names)).collect()
}

fn named(bit: u8, names: &[Name]) -> String {
    match names.iter().find(|name| name.word == Word::Incompatible as u8 && name.bit == bit) {
        Some(name) => format!("{} (bit {bit})", quoted(&name.name)),
        None => format!("bit {bit}, which the image has no name for"),
    }
}

/// What the known bits of a word are called, as qemu has it.
pub fn known(word: Word, bits: u64) -> Vec<&'static str> {
    let names: &[(u64, &'static str)] = match word {
        Word::Incompatible => &[
            (DIRTY, "dirty bit"),
            (CORRUPT, "corrupt bit"),
            (EXTERNAL_DATA, "external data file"),
            (COMPRESSION_TYPE, "compression type"),
            (EXTENDED_L2, "extended L2 entries"),
        ],
        Word::Compatible => &[(LAZY_REFCOUNTS, "lazy refcounts")],
        Word::Autoclear => &[(BITMAPS, "bitmaps"), (RAW_EXTERNAL, "raw external data")],
    };
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}
