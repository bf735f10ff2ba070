//! The blocks of a file, by the indexes at the ends of its streams.

use rbdkit_filter_sdk::image::{Error, Fields, Source, read};

use super::format::{Check, FOOTER_MAGIC, HEADER, MAGIC, place};
use crate::checksum::crc32;
use crate::unpack::{Index, MAX_UNITS, Point};

/// The largest index that is read: that of a million blocks.
const MAX_INDEX: u64 = 20 << 20;

/// A block as its index has it.
struct IndexRecord {
    /// Without padding.
    unpadded: u64,
    size: u64,
}

/// The blocks that hold data, and the number of streams.
pub fn blocks(below: &dyn Source) -> Result<(Index, u64), Error> {
    let mut end = below.size();
    // From the end of the file: offset and size of each block.
    let mut backwards: Vec<(u64, u64)> = Vec::new();
    let mut first = None;
    let mut streams = 0;
    loop {
        end = without_padding(below, end)?;
        if end == 0 {
            break;
        }
        let (start, check, blocks) = stream(below, end)?;
        streams += 1;
        let mut at = start + HEADER;
        first = Some(place(at, check));
        let from = backwards.len();
        for block in blocks {
            backwards.push((place(at, check), block.size));
            at += block.unpadded.next_multiple_of(4);
        }
        if backwards.len() > MAX_UNITS {
            return Err(Error::image(format!("the xz file has more than {MAX_UNITS} blocks")));
        }
        backwards[from..].reverse();
        end = start;
    }
    let Some(first) = first else { return Err(Error::image("the xz file has no stream")) };
    let mut index = Index::default();
    for (at, size) in backwards.into_iter().rev().filter(|(_, size)| *size > 0) {
        index.units.push(Point { out: index.size, at });
        index.size = index
            .size
            .checked_add(size)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| Error::image("the sizes of the xz blocks are more than 2^63 bytes together"))?;
    }
    if index.units.is_empty() {
        index.units.push(Point { out: 0, at: first });
    }
    Ok((index, streams))
}

/// Goes back over the zeroes after a stream.
fn without_padding(below: &dyn Source, mut end: u64) -> Result<u64, Error> {
    let from = end;
    while end > 0 {
        let piece = end.min(4096);
        let bytes = read(below, end - piece, piece as usize)?;
        let zeroes = bytes.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        end -= zeroes;
        if zeroes < piece {
            break;
        }
    }
    // A footer does not end with a zero. Padding has a multiple of four bytes.
    if !(from - end).is_multiple_of(4) {
        return Err(Error::image(format!(
            "{} zeroes follow the xz stream that ends at {end}; 4, 8, ... may",
            from - end
        )));
    }
    Ok(end)
}

/// The stream that ends at `end`: where it begins, its check and its blocks.
fn stream(below: &dyn Source, end: u64) -> Result<(u64, Check, Vec<IndexRecord>), Error> {
    let wrong = |what: String| Error::image(format!("the xz stream that ends at {end} {what}"));
    if end < 2 * HEADER + 8 {
        return Err(wrong(format!("is too short: it has {end} bytes at most")));
    }
    let footer = read(below, end - HEADER, HEADER as usize)?;
    let fields = Fields::little(&footer, "the footer of an xz stream");
    if fields.bytes(10, 2)? != FOOTER_MAGIC {
        return Err(wrong("does not end with YZ: the file is cut, or other data follows".into()));
    }
    if fields.u32(0)? != crc32(fields.bytes(4, 6)?) {
        return Err(wrong("has the wrong CRC in its footer".into()));
    }
    let index_size = (u64::from(fields.u32(4)?) + 1) * 4;
    let check = Check::of([footer[8], footer[9]], end - HEADER)?;
    if index_size > MAX_INDEX || index_size > end - 2 * HEADER {
        let most = MAX_INDEX.min(end - 2 * HEADER);
        return Err(wrong(format!("has an index of {index_size} bytes; it can have {most} at most")));
    }
    let bytes = read(below, end - HEADER - index_size, index_size as usize)?;
    let blocks = records(&bytes).map_err(wrong)?;
    let mut length = 2 * HEADER + index_size;
    for block in &blocks {
        length = block
            .unpadded
            .checked_next_multiple_of(4)
            .and_then(|size| length.checked_add(size))
            .filter(|length| *length <= end)
            .ok_or_else(|| wrong(format!("has blocks that do not fit before {end}")))?;
    }
    let start = end - length;
    check_header(below, start, check)?;
    Ok((start, check, blocks))
}

/// The records of an index.
fn records(bytes: &[u8]) -> Result<Vec<IndexRecord>, String> {
    let (content, crc) = bytes.split_at(bytes.len() - 4);
    if content.first() != Some(&0) {
        return Err("has no index before its footer".into());
    }
    if crc != crc32(content).to_le_bytes() {
        return Err("has the wrong CRC in its index".into());
    }
    let mut rest = &content[1..];
    let short = || "has an index that is wrong".to_string();
    let count = number(&mut rest).ok_or_else(short)?;
    // A record has at least two bytes.
    if count > rest.len() as u64 / 2 {
        return Err(format!("has an index of {} bytes, which says that it has {count} blocks", bytes.len()));
    }
    let mut blocks = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let unpadded = number(&mut rest).filter(|size| *size >= 5).ok_or_else(short)?;
        blocks.push(IndexRecord { unpadded, size: number(&mut rest).ok_or_else(short)? });
    }
    if rest.len() > 3 || rest.iter().any(|byte| *byte != 0) {
        return Err(short());
    }
    Ok(blocks)
}

/// A number of seven bits in each byte, nine bytes at most.
pub fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for n in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            // A last byte of zero would be another form of the same number.
            return (n == 0 || *byte != 0).then_some(value);
        }
    }
    None
}

/// Checks the header of a stream, which has the same check as its footer.
pub fn check_header(below: &dyn Source, start: u64, check: Check) -> Result<(), Error> {
    let header = read(below, start, HEADER as usize)?;
    if header[..6] != MAGIC {
        return Err(Error::image(format!("there is no xz stream at {start}, where one should begin")));
    }
    if header[8..] != crc32(&header[6..8]).to_le_bytes() {
        return Err(Error::image(format!("the xz stream at {start} has the wrong CRC in its header")));
    }
    if Check::of([header[6], header[7]], start)? != check {
        return Err(Error::image(format!("the xz stream at {start} has another checksum in its footer")));
    }
    Ok(())
}
