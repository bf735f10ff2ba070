//! One block of 512 bytes that begins a member.

use rbdkit_filter_sdk::image::{Error, Fields, quoted};

/// Everything in an archive is a multiple of this many bytes.
pub const BLOCK: u64 = 512;

/// The fields of a header block.
pub struct Header {
    pub kind: u8,
    pub size: u64,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    /// Whether the block has a signature. Very old archives have none.
    pub has_magic: bool,
}

impl Header {
    /// Reads a block. None for a block of zeroes, which ends an archive.
    ///
    /// # Errors
    /// A line if the checksum or a number is wrong. `at` is where the block is.
    pub fn parse(block: &[u8], at: u64) -> Result<Option<Header>, Error> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let what = format!("the header at {at}");
        let fields = Fields::big(block, &what);
        // Another file than an archive has no header at its start.
        let wrong = |why: String| match at {
            0 => Error::image(format!("it is not a tar archive: {what} is wrong: {why}")),
            _ => Error::image(format!("{what} is wrong: {why}")),
        };
        let written = octal(fields.bytes(148, 8)?)
            .ok_or_else(|| wrong(format!("its checksum is {}", quoted(block.get(148..156).unwrap_or_default()))))?;
        if !sums(block).contains(&(written as i64)) {
            return Err(wrong(format!("its checksum is {written}, and the bytes give {}", sums(block)[0])));
        }
        let size = number(fields.bytes(124, 12)?)
            .ok_or_else(|| wrong(format!("its size is {}", quoted(block.get(124..136).unwrap_or_default()))))?;
        let magic = fields.bytes(257, 8)?;
        let mut name = Vec::new();
        if magic.starts_with(b"ustar\0") {
            // In archives of star the end of the prefix holds times.
            let prefix = fields.text(345, if block.ends_with(b"tar\0") { 131 } else { 155 })?;
            if !prefix.is_empty() {
                name.extend_from_slice(prefix);
                name.push(b'/');
            }
        }
        name.extend_from_slice(fields.text(0, 100)?);
        Ok(Some(Header {
            kind: fields.u8(156)?,
            size,
            name,
            link: fields.text(157, 100)?.to_vec(),
            has_magic: magic.starts_with(b"ustar"),
        }))
    }
}

/// The sum of the bytes of a header, in which the checksum counts as spaces. Some old programs took
/// the bytes as signed, which gives the second number.
fn sums(block: &[u8]) -> [i64; 2] {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
    [
        block.iter().enumerate().map(|pair| i64::from(byte(pair))).sum(),
        block.iter().enumerate().map(|pair| i64::from(byte(pair) as i8)).sum(),
    ]
}

/// A number in octal digits, with spaces around it. An empty field is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A number in octal digits, or in the form of GNU tar for large numbers: big endian in base 256,
/// with the top bit set.
pub fn number(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, rest @ ..] => {
            let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
            high.iter().all(|byte| *byte == 0).then(|| low.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        }
        [0x81..=0xff, ..] => None,
        _ => octal(field),
    }
}

/// A number in decimal digits, and nothing else.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
