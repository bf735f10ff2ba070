//! The records of a directory, with their names.

use rbdkit_filter_sdk::image::{Error, Fields};

use super::rock::{Rock, SystemUse as Susp};

/// Which of its names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Upper case, with a version: `DISK.IMG;1`.
    Plain,
    /// Two bytes a letter.
    Joliet,
    /// POSIX names, links and so on, in each record. So many bytes of its field are something else.
    RockRidge { skip: usize },
}

/// A directory's record of a file, or of a piece of one.
#[derive(Clone, Debug)]
pub struct Record {
    pub name: Vec<u8>,
    /// The first block.
    pub block: u32,
    /// In bytes.
    pub size: u32,
    pub is_directory: bool,
    /// The next record is of the same file.
    pub goes_on: bool,
    /// It is another fork of a file, and has the same name.
    pub is_associated: bool,
    pub is_interleaved: bool,
    pub rock: Rock,
}

impl Record {
    /// The first record of `bytes`, and its length. None if there is no more in this sector.
    pub fn parse(bytes: &[u8], names: Names, susp: &Susp<'_>) -> Result<Option<(Record, usize)>, Error> {
        let length = bytes.first().map_or(0, |length| usize::from(*length));
        if length == 0 {
            return Ok(None);
        }
        let fail = |line: String| Err(Error::image(format!("a directory is damaged: it has a record {line}")));
        let Some(record) = bytes.get(..length) else {
            return fail(format!("of {length} bytes, of which {} are in its sector", bytes.len()));
        };
        let name_length = record.get(32).map_or(0, |length| usize::from(*length));
        if length < 34 || 33 + name_length > length {
            return fail(format!("of {length} bytes with a name of {name_length}"));
        }
        let fields = Fields::little(record, "the record");
        let flags = fields.u8(25)?;
        let raw = fields.bytes(33, name_length)?;
        let rock = match names {
            Names::RockRidge { skip } => {
                // The field begins at an even place.
                let start = (33 + name_length).next_multiple_of(2) + skip;
                Rock::parse(record.get(start..).unwrap_or_default(), susp)?
            }
            _ => Rock::default(),
        };
        let name = match (&rock.name, names) {
            (Some(name), _) => name.clone(),
            (None, Names::Joliet) if !is_special(raw) => joliet(raw),
            _ => without_version(raw).to_vec(),
        };
        let record = Record {
            name,
            block: fields.u32(2)?.saturating_add(fields.u8(1)?.into()),
            size: fields.u32(10)?,
            is_directory: flags & 2 != 0,
            goes_on: flags & 0x80 != 0,
            is_associated: flags & 4 != 0,
            is_interleaved: fields.u16(26)? != 0,
            rock,
        };
        Ok(Some((record, length)))
    }

    /// Whether it has this name. Names without lower-case letters are compared without case.
    pub fn has_name(&self, name: &[u8], names: Names) -> bool {
        let wanted = without_version(name);
        match names {
            Names::RockRidge { .. } if self.rock.name.is_some() => self.name == name,
            Names::Joliet => self.name == wanted,
            _ => self.name.eq_ignore_ascii_case(wanted),
        }
    }
}

/// The records of the directory itself and its parent.
fn is_special(raw: &[u8]) -> bool {
    matches!(raw, [0 | 1])
}

fn joliet(raw: &[u8]) -> Vec<u8> {
    let letters = raw.as_chunks::<2>().0.iter().map(|letter| u16::from_be_bytes(*letter));
    let name: String = char::decode_utf16(letters).map(|letter| letter.unwrap_or('\u{fffd}')).collect();
    without_version(name.as_bytes()).to_vec()
}

/// Without `;1`, and without the dot of an empty extension.
fn without_version(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| *byte == b';');
    let version = end.map_or(&[][..], |end| &name[end + 1..]);
    match end {
        Some(end) if !version.is_empty() && version.iter().all(u8::is_ascii_digit) => {
            let name = &name[..end];
            name.strip_suffix(b".").unwrap_or(name)
        }
        _ => name,
    }
}
