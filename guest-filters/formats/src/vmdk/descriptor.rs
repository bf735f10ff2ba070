//! The descriptor: text that says of which extents a disk consists, and what its parent is.
//!
//! It is a file of its own, or lies in a sparse file. The names of files in it are for messages
//! only.

use rbdkit_filter_sdk::image::{Error, Source, quoted, read};

/// How a descriptor begins, in upper or lower case.
pub(super) const BEGIN: &[u8; 21] = b"# Disk DescriptorFile";

/// The longest descriptor in bytes. One of a split disk of 60 TiB has 2 MiB in VMware's products at
/// most; qemu reads 1 MiB.
pub(super) const MAX_LENGTH: u64 = 1 << 20;

/// The most extents that a descriptor may have. VMware's products split a disk of 62 TiB into
/// 32,000 files of 2 GiB at most.
const MAX_EXTENTS: usize = 32 << 10;

/// What a descriptor says.
#[derive(Debug, Default)]
pub(super) struct Descriptor {
    pub(super) create_type: Vec<u8>,
    /// No parent is `ffffffff`, or that there is no such line.
    parent_cid: Vec<u8>,
    parent_name: Vec<u8>,
    pub(super) extents: Vec<ExtentLine>,
}

/// A line that describes an extent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) sectors: u64,
    pub(super) kind: ExtentKind,
    /// Of a file of the host that made the disk.
    pub(super) name: Vec<u8>,
    /// In sectors of that file.
    pub(super) offset: u64,
}

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// Byte by byte.
    Flat,
    /// In a sparse file with tables.
    Sparse,
    /// Not at all: it reads as zero.
    Zero,
}

/// Whether a file is a descriptor.
///
/// # Errors
/// Those of the source.
pub(super) fn is_descriptor(below: &dyn Source) -> Result<bool, Error> {
    if below.size() < BEGIN.len() as u64 {
        return Ok(false);
    }
    let mut begin = [0; BEGIN.len()];
    below.read(0, &mut begin)?;
    Ok(begin.eq_ignore_ascii_case(BEGIN))
}

/// The text from `offset` on, up to a zero byte or for `length` bytes.
///
/// # Errors
/// Those of the source. A line if it is too long.
pub(super) fn text_at(below: &dyn Source, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    const PIECE: u64 = 16 << 10;
    let mut text = Vec::new();
    while (text.len() as u64) < length.min(MAX_LENGTH) {
        let done = text.len() as u64;
        let piece = read(below, offset.saturating_add(done), PIECE.min(length.min(MAX_LENGTH) - done) as usize)?;
        let end = piece.iter().position(|byte| *byte == 0);
        text.extend_from_slice(&piece[..end.unwrap_or(piece.len())]);
        if end.is_some() {
            return Ok(text);
        }
    }
    if length > MAX_LENGTH {
        return Err(Error::image(format!("the descriptor has {length} bytes, and at most {MAX_LENGTH} are supported")));
    }
    Ok(text)
}

impl Descriptor {
    /// Reads the text of a descriptor.
    ///
    /// # Errors
    /// A line if an extent is wrong.
    pub(super) fn parse(text: &[u8]) -> Result<Descriptor, Error> {
        let mut descriptor = Descriptor::default();
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            if let Some(rest) = extent_of(line)? {
                descriptor.extents.push(ExtentLine::parse(line, rest)?);
                if descriptor.extents.len() > MAX_EXTENTS {
                    return Err(Error::image(format!("the descriptor has more than {MAX_EXTENTS} extents")));
                }
            } else if let Some((key, value)) = setting(line) {
                match &key.to_ascii_lowercase()[..] {
                    b"createtype" => descriptor.create_type = value.to_vec(),
                    b"parentcid" => descriptor.parent_cid = value.to_vec(),
                    b"parentfilenamehint" => descriptor.parent_name = value.to_vec(),
                    _ => {}
                }
            }
        }
        Ok(descriptor)
    }

    /// The name of the parent's file, if the disk has a parent. It may be empty.
    pub(super) fn parent(&self) -> Option<&[u8]> {
        let has_id = !self.parent_cid.is_empty() && !self.parent_cid.eq_ignore_ascii_case(b"ffffffff");
        (has_id || !self.parent_name.is_empty()).then_some(&self.parent_name)
    }

    /// The size of the disk in sectors.
    ///
    /// # Errors
    /// A line if it is more than 2^63 bytes.
    pub(super) fn sectors(&self) -> Result<u64, Error> {
        self.extents
            .iter()
            .try_fold(0u64, |sum, extent| sum.checked_add(extent.sectors))
            .filter(|sectors| *sectors <= super::sparse::MAX_SECTORS)
            .ok_or_else(|| Error::image("the extents of the descriptor have more than 2^63 bytes in all"))
    }
}

impl ExtentLine {
    /// `rest` is what follows the access mode.
    fn parse(line: &[u8], rest: &[u8]) -> Result<ExtentLine, Error> {
        let wrong = |why: &str| Error::image(format!("the descriptor's line {} {why}", quoted(line)));
        let (sectors, rest) = word(rest);
        let (kind, rest) = word(rest);
        let sectors = number(sectors).ok_or_else(|| wrong("does not say the number of sectors"))?;
        let kind = match kind {
            b"FLAT" | b"VMFS" => ExtentKind::Flat,
            b"SPARSE" | b"VMFSSPARSE" => ExtentKind::Sparse,
            b"ZERO" => ExtentKind::Zero,
            other => {
                return Err(wrong(&format!(
                    "has an extent of the type {}: FLAT, VMFS, SPARSE, VMFSSPARSE and ZERO are supported",
                    quoted(other)
                )));
            }
        };
        if kind == ExtentKind::Zero {
            return Ok(ExtentLine { sectors, kind, name: Vec::new(), offset: 0 });
        }
        let name_and_rest = rest.strip_prefix(b"\"").and_then(|rest| {
            let end = rest.iter().position(|byte| *byte == b'"')?;
            Some((&rest[..end], rest[end + 1..].trim_ascii()))
        });
        let (name, rest) = name_and_rest.ok_or_else(|| wrong("has no name in quotes"))?;
        let offset = match kind {
            ExtentKind::Flat if !rest.is_empty() => {
                number(rest).ok_or_else(|| wrong("has no number for its offset"))?
            }
            _ => 0,
        };
        Ok(ExtentLine { sectors, kind, name: name.to_vec(), offset })
    }
}

/// What follows the access mode, if a line describes an extent.
fn extent_of(line: &[u8]) -> Result<Option<&[u8]>, Error> {
    let (access, rest) = word(line);
    match access {
        b"RW" | b"RDONLY" => Ok(Some(rest)),
        b"NOACCESS" => Err(Error::image(format!("the descriptor's line {} forbids access to an extent", quoted(line)))),
        _ => Ok(None),
    }
}

/// The first word of a text, and what follows it and spaces.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii())
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    digits.then(|| str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Key and value of a line, the value without its quotes.
fn setting(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let value = line[equals + 1..].trim_ascii();
    let value = value.strip_prefix(b"\"").map_or(value, |value| value.strip_suffix(b"\"").unwrap_or(value));
    Some((line[..equals].trim_ascii(), value))
}
