//! Comparing what a client writes with what the layer below has. The bytes stay in the host.

use rbdkit_filter_sdk::buffer::{Buffer, Payload};
use rbdkit_filter_sdk::{CommandFlags, Errno, ExtentType, next};

/// How many bytes are read and compared at once.
const PIECE: u64 = 1 << 20;

/// Calls `equal` with a buffer for each piece of a range until it is false. It gets the position of
/// the piece within the range, its length, and the buffer with next's bytes.
fn compare(offset: u64, length: u64, mut equal: impl FnMut(u64, u32, &Buffer) -> bool) -> Result<bool, Errno> {
    let buffer = Buffer::new(length.min(PIECE) as u32)?;
    let mut done = 0;
    while done < length {
        let count = (length - done).min(PIECE) as u32;
        next::pread(offset + done, count, buffer.id(), 0)?;
        if !equal(done, count, &buffer) {
            return Ok(false);
        }
        done += u64::from(count);
    }
    Ok(true)
}

/// Whether next has, from `offset` on, the `length` bytes of the payload from position `at` on.
///
/// # Errors
/// Those of reading.
pub fn has_payload(offset: u64, length: u32, at: u32) -> Result<bool, Errno> {
    compare(offset, length.into(), |done, count, buffer| {
        let from = at + done as u32;
        Payload.mismatch(from..from + count, buffer, 0).is_none()
    })
}

/// Whether a range of next reads as zero. What next's extents call zero is not read.
///
/// # Errors
/// Those of reading.
pub fn has_zeroes(offset: u64, length: u64) -> Result<bool, Errno> {
    let reads_as_zero = |offset, length| compare(offset, length, |_, count, buffer| buffer.is_zero(..count));
    if length <= PIECE || !next::can()?.extents {
        return reads_as_zero(offset, length);
    }
    let mut at = offset;
    while at < offset + length {
        for extent in next::extents(at, offset + length - at, CommandFlags::empty())? {
            if !extent.kind.contains(ExtentType::ZERO) && !reads_as_zero(extent.offset, extent.length)? {
                return Ok(false);
            }
            at = extent.offset + extent.length;
        }
    }
    Ok(true)
}

/// Whether next's extents call a whole range zero. Nothing is read.
///
/// # Errors
/// Those of asking for extents.
pub fn is_known_zero(offset: u64, length: u64) -> Result<bool, Errno> {
    if !next::can()?.extents {
        return Ok(false);
    }
    let mut at = offset;
    while at < offset + length {
        for extent in next::extents(at, offset + length - at, CommandFlags::empty())? {
            if !extent.kind.contains(ExtentType::ZERO) {
                return Ok(false);
            }
            at = extent.offset + extent.length;
        }
    }
    Ok(true)
}
