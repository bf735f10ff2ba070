//! The headers of frames.

use rbdkit_filter_sdk::image::Error;

use crate::unpack::Input;
use crate::unpack::frames::{next_frame, other_frame};

/// What a frame begins with, as a little-endian number.
pub(super) const MAGIC: u32 = 0xfd2f_b528;

const SINGLE_SEGMENT: u8 = 0x20;
const RESERVED: u8 = 8;
const HAS_CHECKSUM: u8 = 4;

/// The header of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub at: u64,
    /// In bytes.
    pub window: u64,
    /// How much data it has, if it says so.
    pub content_size: Option<u64>,
    /// 0 if none is named.
    pub dictionary: u32,
    /// Whether a checksum of its data is at its end.
    pub has_checksum: bool,
}

/// Reads the header of the next frame. None at the end of the file.
///
/// # Errors
/// Those of the source, and a line if there is no frame.
pub(super) fn next(input: &mut Input) -> Result<Option<Frame>, Error> {
    let Some((at, magic)) = next_frame(input)? else { return Ok(None) };
    if magic != MAGIC {
        return Err(other_frame("zstd", at, magic, &[MAGIC]));
    }
    let [descriptor] = input.array("the header of a zstd frame")?;
    if descriptor & RESERVED != 0 {
        return Err(Error::image(format!("the zstd frame at {at} has the reserved bit of its header set")));
    }
    let is_single = descriptor & SINGLE_SEGMENT != 0;
    let window = if is_single { None } else { Some(number(input, 1)? as u8) };
    let dictionary = number(input, [0, 1, 2, 4][usize::from(descriptor & 3)])? as u32;
    let content_size = match (descriptor >> 6, is_single) {
        (0, false) => None,
        (0, true) => Some(number(input, 1)?),
        (1, _) => Some(number(input, 2)? + 256),
        (2, _) => Some(number(input, 4)?),
        _ => Some(number(input, 8)?),
    };
    let window = match window {
        Some(byte) => {
            let base = 1u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }
        // All of the frame is one window.
        None => content_size.unwrap_or(0),
    };
    let has_checksum = descriptor & HAS_CHECKSUM != 0;
    Ok(Some(Frame { at, window, content_size, dictionary, has_checksum }))
}

/// A little-endian number of `length` bytes, at most 8.
fn number(input: &mut Input, length: usize) -> Result<u64, Error> {
    let mut bytes = [0; 8];
    input.fill(&mut bytes[..length], "the header of a zstd frame")?;
    Ok(u64::from_le_bytes(bytes))
}
