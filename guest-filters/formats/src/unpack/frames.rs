//! Frames that begin with a number of four bytes, as zstd and lz4 have them. Both formats have the
//! same frames that a reader skips.

use rbdkit_filter_sdk::image::{Error, Fields, Source, read};

use super::{Input, hexadecimal};

/// A signature looks at so many frames that are skipped, and no more.
const MAX_SKIPPED: u32 = 16;

/// Whether a frame that begins with this number is skipped.
pub fn is_skippable(magic: u32) -> bool {
    magic & 0xffff_fff0 == 0x184d_2a50
}

/// Skips frames that have no data. Returns where the next frame begins, and its number, which is
/// taken from the input. None at the end of the file.
///
/// # Errors
/// Those of the source, and a line if the file ends within a frame.
pub fn next_frame(input: &mut Input) -> Result<Option<(u64, u32)>, Error> {
    loop {
        let at = input.at();
        if at >= input.size() {
            return Ok(None);
        }
        let magic = u32::from_le_bytes(input.array("the number that a frame begins with")?);
        if !is_skippable(magic) {
            return Ok(Some((at, magic)));
        }
        let length = u32::from_le_bytes(input.array("the header of a skippable frame")?);
        let end = input.at() + u64::from(length);
        if end > input.size() {
            let size = input.size();
            return Err(Error::image(format!(
                "the skippable frame at {at} ends at {end}, and the file after {size} bytes"
            )));
        }
        input.go_to(end);
    }
}

/// The number of the first frame that is not skipped, for a signature. None if there is none near
/// the start of the file.
///
/// # Errors
/// Those of the source.
pub fn first_magic(below: &dyn Source) -> Result<Option<u32>, Error> {
    let mut at = 0u64;
    for _ in 0..MAX_SKIPPED {
        if below.size().saturating_sub(at) < 8 {
            break;
        }
        let header = read(below, at, 8)?;
        let fields = Fields::little(&header, "the header of a frame");
        let magic = fields.u32(0)?;
        if !is_skippable(magic) {
            return Ok(Some(magic));
        }
        at += 8 + u64::from(fields.u32(4)?);
    }
    Ok(None)
}

/// Checks that a file begins with one of the numbers, or with a frame that is skipped. `name` is
/// that of a file of the format: "a zstd file".
///
/// # Errors
/// Those of the source, and a line if the file begins with other bytes.
pub fn check_first(below: &dyn Source, name: &str, magics: &[u32]) -> Result<(), Error> {
    let there = read(below, 0, below.size().min(4) as usize)?;
    let magic = there.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    if magic.is_some_and(|magic| is_skippable(magic) || magics.contains(&magic)) {
        return Ok(());
    }
    Err(Error::image(match there.is_empty() {
        true => format!("it is not {name}: it is empty"),
        false => format!("it is not {name}: it begins with {}, not {}", hexadecimal(&there), choices(magics)),
    }))
}

/// The line about a frame of another format.
pub fn other_frame(format: &str, at: u64, magic: u32, magics: &[u32]) -> Error {
    let there = hexadecimal(&magic.to_le_bytes());
    Error::image(format!("there is no {format} frame at {at}: it begins with {there}, not {}", choices(magics)))
}

fn choices(magics: &[u32]) -> String {
    magics.iter().map(|magic| hexadecimal(&magic.to_le_bytes())).collect::<Vec<_>>().join(" or ")
}
