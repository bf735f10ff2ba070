//! Decompression of pieces whose size is known: clusters, grains, chunks.

use std::io::{Read, Write};

use bzip2::{Decompress, Status};
use lzfse_rust::LzfseRingDecoder;
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

/// Decompresses the bzip2 stream at the start of `input` and returns how many bytes that gave. It
/// stops when `out` is full; what follows in `input` is ignored.
///
/// # Errors
/// A line if the data or a checksum in it is wrong, or if it ends early.
pub fn unbzip2(input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut state = Decompress::new(false);
    let (mut read, mut done) = (0, 0);
    loop {
        let status = state.decompress(&input[read..], &mut out[done..]);
        // What the decoder says of itself fits into the slices that it was given.
        let (was_read, was_done) = (read, done);
        (read, done) = (state.total_in() as usize, state.total_out() as usize);
        match status {
            Ok(Status::StreamEnd) => return Ok(done),
            Ok(_) if done == out.len() => return Ok(done),
            Ok(_) if (read, done) != (was_read, was_done) => {}
            Ok(_) => return Err(wrong("bzip2", input, done, &"it ends early")),
            Err(error) => return Err(wrong("bzip2", input, done, &error)),
        }
    }
}

/// Takes bytes until it is full.
struct Filled<'a> {
    out: &'a mut [u8],
    done: usize,
}

impl Write for Filled<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = bytes.len().min(self.out.len() - self.done);
        if length == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.out[self.done..self.done + length].copy_from_slice(&bytes[..length]);
        self.done += length;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Decompresses an lzfse stream and returns how many bytes that gave. It stops when `out` is full.
///
/// # Errors
/// A line if the data is wrong, ends early, or has something behind its end.
pub fn unlzfse(input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut filled = Filled { out, done: 0 };
    let result = LzfseRingDecoder::default().decode(&mut &*input, &mut filled);
    let done = filled.done;
    match result {
        Ok(_) => Ok(done),
        Err(_) if done == out.len() => Ok(done),
        Err(error) => Err(wrong("lzfse", input, done, &error)),
    }
}

/// Decompresses data in Apple's ADC and returns how many bytes that gave. It stops when `out` is
/// full; what follows in `input` is ignored.
///
/// The first byte of each code says what it is: 1 to 128 bytes as they are, or a copy of what is
/// already there, with a distance of 10 or 16 bits.
///
/// # Errors
/// A line if the data copies from before its start, or ends within a code.
pub fn unadc(input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let (mut read, mut done) = (0, 0);
    let early = |done| wrong("ADC", input, done, &"it ends early");
    while read < input.len() && done < out.len() {
        let code = input[read];
        read += 1;
        if code & 0x80 != 0 {
            let length = usize::from(code & 0x7f) + 1;
            let plain = input.get(read..read + length).ok_or_else(|| early(done))?;
            let fits = length.min(out.len() - done);
            out[done..done + fits].copy_from_slice(&plain[..fits]);
            (read, done) = (read + length, done + fits);
            continue;
        }
        let byte = |at: usize| input.get(at).copied().map(usize::from).ok_or_else(|| early(done));
        let (length, distance) = if code & 0x40 != 0 {
            let distance = byte(read)? << 8 | byte(read + 1)?;
            read += 2;
            (usize::from(code & 0x3f) + 4, distance + 1)
        } else {
            let distance = usize::from(code & 3) << 8 | byte(read)?;
            read += 1;
            (usize::from(code >> 2) + 3, distance + 1)
        };
        if distance > done {
            let what = format!("it copies from {distance} bytes before");
            return Err(wrong("ADC", input, done, &what));
        }
        // The copy may overlap what it makes: byte by byte.
        let end = (done + length).min(out.len());
        while done < end {
            out[done] = out[done - distance];
            done += 1;
        }
    }
    Ok(done)
}

fn wrong(name: &str, input: &[u8], done: usize, why: &dyn std::fmt::Display) -> Error {
    Error::image(format!("{name} data of {} bytes is wrong after {done} bytes: {why}", input.len()))
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

    /// A decoder of pieces.
    type Decode = fn(&[u8], &mut [u8]) -> Result<usize, Error>;

    /// Each with data that another program or another part of its crate compressed.
    fn compressed(data: &[u8]) -> [(&'static str, Decode, Vec<u8>); 3] {
        let mut lzfse = Vec::new();
        lzfse_rust::encode_bytes(data, &mut lzfse).unwrap();
        [
            ("bzip2", unbzip2, piped("bzip2", &["-9"], data)),
            ("lzfse", unlzfse, lzfse),
            ("ADC", unadc, crate::testing::dmg::adc(data)),
        ]
    }

    #[test]
    fn chunks_of_disk_images_are_what_they_were_and_stop_where_the_room_ends() {
        for (seed, length) in [(3, 200_000), (4, 1), (5, 1 << 20)] {
            let data = sample(length, seed);
            for (name, decode, mut packed) in compressed(&data) {
                let mut out = vec![1; length + 1];
                assert_eq!(decode(&packed, &mut out), Ok(length), "{name}: all of it, and no more");
                assert!(out[..length] == data, "{name}");
                let some = length / 2;
                assert_eq!(decode(&packed, &mut out[..some]), Ok(some), "{name}: a bomb stops");
                packed.extend([0; 100]);
                if name == "bzip2" {
                    assert_eq!(decode(&packed, &mut out), Ok(length), "{name}: what follows is ignored");
                }
            }
        }
    }

    #[test]
    fn chunks_that_are_cut_or_changed_are_errors() {
        let data = sample(100_000, 6);
        for (name, decode, packed) in compressed(&data) {
            let mut out = vec![0; data.len() + 1];
            for cut in [0, 1, 5, packed.len() / 2] {
                match decode(&packed[..cut], &mut out) {
                    // ADC has no mark of its end: only its length shows that it was cut.
                    Ok(got) => assert!(name == "ADC" && got < data.len(), "{name} cut at {cut}: {got} bytes"),
                    Err(error) => assert!(error.to_string().starts_with(&format!("{name} data of {cut} bytes"))),
                }
            }
            for at in (0..packed.len()).step_by(997) {
                let mut changed = packed.clone();
                changed[at] ^= 0x55;
                let _ = decode(&changed, &mut out);
            }
        }
        let mut out = [0; 100];
        let line = "ADC data of 2 bytes is wrong after 0 bytes: it copies from 1 bytes before";
        assert_eq!(unadc(&[0, 0], &mut out), Err(Error::image(line)));
        assert_eq!(unadc(&[0x80, 7, 0x40, 0, 0], &mut out), Ok(5));
        assert_eq!(out[..5], [7; 5], "a copy may overlap what it makes");
    }
}
