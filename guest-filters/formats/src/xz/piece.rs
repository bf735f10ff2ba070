//! Decompression of a stream that is in memory: a chunk of a disk image.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use super::blocks::Decoding;
use super::format::{Check, HEADER};
use super::index;
use crate::unpack::Stream;

/// Decompresses the xz streams in `input` and returns how many bytes that gave. It stops when `out`
/// is full. The memory that it needs is bounded by `out`, whatever dictionary a stream asks for.
///
/// # Errors
/// A line if the data, its index or a checksum in it is wrong.
pub fn unxz(input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let below: Rc<dyn Source> = Rc::new(input.to_vec());
    index::blocks(&*below)?;
    let flags = read(&*below, 0, HEADER as usize)?;
    let check = Check::of([flags[6], flags[7]], 0)?;
    let dictionary = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let mut stream = Decoding::begin_within(below, HEADER, check, dictionary)?;
    let mut done = 0;
    while done < out.len() {
        match stream.read(&mut out[done..])? {
            0 if stream.next_unit()?.is_none() => break,
            got => done += got,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{piped, sample};

    #[test]
    fn a_stream_in_memory_is_what_it_was_and_stops_where_the_room_ends() {
        let options: [&[&str]; 4] = [
            &["-6"],
            &["-0", "--check=sha256"],
            &["--block-size=64KiB", "-T2"],
            &["--lzma2=dict=256MiB", "--check=none"],
        ];
        for (seed, options) in (1..).zip(options) {
            let data = sample(300_000, seed);
            let packed = piped("xz", options, &data);
            let mut out = vec![1; data.len() + 1];
            assert_eq!(unxz(&packed, &mut out), Ok(data.len()), "{options:?}: all of it, and no more");
            assert!(out[..data.len()] == data, "{options:?}");
            assert_eq!(unxz(&packed, &mut out[..1000]), Ok(1000), "{options:?}: a bomb stops");
        }
        assert_eq!(unxz(&piped("xz", &[], b""), &mut [0; 9]), Ok(0));
    }

    #[test]
    fn a_stream_that_is_cut_or_changed_is_an_error() {
        let data = sample(100_000, 6);
        let packed = piped("xz", &[], &data);
        let mut out = vec![0; data.len() + 1];
        for cut in [0, 1, 12, 31, packed.len() / 2, packed.len() - 1] {
            assert!(unxz(&packed[..cut], &mut out).is_err(), "cut at {cut}");
        }
        for at in (0..packed.len()).step_by(499) {
            let mut changed = packed.clone();
            changed[at] ^= 0x55;
            assert!(unxz(&changed, &mut out).is_err(), "changed at {at}");
        }
    }
}
