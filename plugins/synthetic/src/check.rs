//! Writes that have to equal what is there: a client can copy a disk onto itself, and learns
//! whether it copied correctly.

use rbdkit_plugin_api::{Errno, Error, Result};

/// How many bytes are computed and compared at a time.
const PIECE: usize = 4096;

/// Compares a write with what a read would return. `fill` computes the disk's bytes at an offset.
///
/// # Errors
/// EIO if they differ.
pub fn check_written(bytes: &[u8], offset: u64, fill: impl Fn(&mut [u8], u64)) -> Result<()> {
    let mut expected = [0; PIECE];
    let mut at = offset;
    for piece in bytes.chunks(PIECE) {
        let expected = &mut expected[..piece.len()];
        fill(expected, at);
        if expected != piece {
            return Err(Error::new(Errno::Eio, "data written does not match expected"));
        }
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_wrong_byte_anywhere_is_an_error() {
        let fill = |bytes: &mut [u8], offset: u64| {
            for (byte, at) in bytes.iter_mut().zip(offset..) {
                *byte = (at / 3) as u8;
            }
        };
        for (offset, length) in [(0, 1), (7, PIECE), (4095, PIECE + 1), (1 << 40, 3 * PIECE + 17)] {
            let mut bytes = vec![0; length];
            fill(&mut bytes, offset);
            check_written(&bytes, offset, fill).unwrap();
            for wrong in [0, length / 2, length - 1] {
                bytes[wrong] ^= 1;
                let error = check_written(&bytes, offset, fill).unwrap_err();
                assert_eq!(error.errno(), Errno::Eio, "{offset} {length} {wrong}");
                bytes[wrong] ^= 1;
            }
        }
    }
}
