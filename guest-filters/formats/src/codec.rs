//! Decompression of pieces whose size is known: clusters, grains, chunks.

use std::io::Read;

use rbdkit_filter_sdk::image::Error;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

pub use crate::zlib::Deflated;
use crate::zlib::{InflateState, Outcome, Until};

/// Inflates `input` into `out` and returns how many bytes that gave. It stops when `out` is full;
/// what follows in `input` is ignored.
///
/// # Errors
/// A line if the data is wrong or ends early.
pub fn inflate(wrapping: Deflated, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let step = InflateState::new(wrapping).step(input, out, Until::Full);
    match step.outcome {
        Outcome::Ended => Ok(step.given),
        Outcome::Paused if step.given == out.len() => Ok(step.given),
        Outcome::Paused | Outcome::Wrong => {
            Err(Error::image(format!("deflated data of {} bytes is wrong after {} bytes", input.len(), step.given)))
        }
    }
}

/// Windows of zstd frames up to this size are accepted, in bytes. The guest's memory has to hold
/// one. RFC 8878 recommends that decoders support that much.
const MAX_WINDOW: u64 = 8 << 20;

/// Decompresses the zstd frame at the start of `input` until `out` is full. What follows in `input`
/// is ignored.
///
/// # Errors
/// A line if the data is wrong, gives fewer bytes, or needs a window of more than 8 MiB.
pub fn unzstd(input: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let wrong =
        |error: &dyn std::fmt::Display| Error::image(format!("zstd data of {} bytes is wrong: {error}", input.len()));
    let mut rest = input;
    let mut frame = FrameDecoder::new();
    frame.set_max_window_size(MAX_WINDOW);
    frame.init(&mut rest).map_err(|error| wrong(&error))?;
    let mut done = 0;
    while done < out.len() {
        frame
            .decode_blocks(&mut rest, BlockDecodingStrategy::UptoBytes(out.len() - done))
            .map_err(|error| wrong(&error))?;
        let got = frame.read(&mut out[done..]).map_err(|error| wrong(&error))?;
        done += got;
        if got == 0 && frame.is_finished() {
            return Err(wrong(&format!("it gives {done} bytes, and {} are needed", out.len())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{piped, sample};

    #[test]
    fn what_the_tools_compressed_is_what_it_was() {
        let data = sample(200_000, 1);
        let gzip = piped("gzip", &["-9"], &data);
        let mut out = vec![0; data.len()];
        // Without a name a gzip header has 10 bytes.
        assert_eq!(inflate(Deflated::Raw, &gzip[10..], &mut out), Ok(data.len()));
        assert!(out == data);
        assert_eq!(inflate(Deflated::Raw, &gzip[10..], &mut out[..1000]), Ok(1000), "what follows is ignored");
        for level in ["-1", "-19"] {
            let mut zstd = piped("zstd", &[level], &data);
            zstd.extend([0xaa; 100]);
            let mut out = vec![0; data.len()];
            unzstd(&zstd, &mut out).unwrap();
            assert!(out == data);
            unzstd(&zstd, &mut out[..1000]).unwrap();
        }
    }

    #[test]
    fn wrong_and_short_data_is_an_error() {
        let data = sample(5000, 2);
        let (gzip, zstd) = (piped("gzip", &[], &data), piped("zstd", &[], &data));
        let mut out = vec![0; data.len()];
        assert!(inflate(Deflated::Raw, &gzip[10..200], &mut out).is_err());
        assert!(inflate(Deflated::Zlib, &gzip, &mut out).is_err());
        assert!(unzstd(&zstd[..200], &mut out).is_err());
        assert!(unzstd(&gzip, &mut out).is_err());
        assert!(unzstd(&zstd, &mut vec![0; data.len() + 1]).is_err());
        assert!(unzstd(&[], &mut out).is_err());
        // A frame with a window descriptor of 128 MiB.
        let huge = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 1, 0, 0];
        assert!(unzstd(&huge, &mut out).unwrap_err().to_string().contains("window"));
    }
}
