//! bzip2 files of the tools, read anywhere; and wrong ones.

use super::*;
use crate::testing::{piped, sample, source};
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};

fn open_in(bytes: &[u8], room: usize) -> Unpacked<Bzip2> {
    open(source(bytes), &Storage::Memory(room)).unwrap()
}

#[test]
fn what_bzip2_pbzip2_and_lbzip2_wrote_is_what_it_was() {
    for (length, level) in [(0, "-9"), (1, "-9"), (300_000, "-1"), (900_001, "-9"), (1_234_567, "-5")] {
        let data = sample(length, 3);
        same(&open_in(&piped("bzip2", &[level], &data), 1 << 30), &data);
        same(&open_in(&piped("pbzip2", &["-p2", "-b1"], &data), 0), &data);
        same(&open_in(&piped("lbzip2", &["-n2", "-1"], &data), 0), &data);
    }
}

#[test]
fn streams_follow_each_other_and_zeroes_may_end_the_file() {
    let data = sample(700_000, 4);
    let mut file = Vec::new();
    for part in data.chunks(150_000) {
        file.extend(piped("bzip2", &["-1"], part));
        file.extend(piped("bzip2", &[], &[]));
    }
    file.extend([0; 1000]);
    same(&open_in(&file, 1 << 30), &data);
    same(&open_in(&file, 0), &data);
    file.push(1);
    let end = file.len() - 1001;
    assert_eq!(line(INFO.open, &file), format!("there is no bzip2 stream at {end}: it begins with 000000, not 425a68"));
}

#[test]
fn without_room_for_chunks_decoding_resumes_at_blocks() {
    let data = sample(14 << 20, 5);
    let file = open_in(&piped("bzip2", &["-9"], &data), 0);
    assert!((7..=16).contains(&file.points()), "{} points", file.points());
    assert_eq!(starts_of_a_sequential_read(&file), 1, "a sequential reader continues one decoder");
    random_reads(&file, &data, 8);
    assert!(file.points.iter().skip(1).all(|point| point.at & WITHIN == WITHIN), "all are within one stream");
    assert!(file.points.iter().any(|point| point.at / 2 % 8 != 0), "a block begins within a byte");
}

#[test]
fn a_last_block_of_one_byte_is_read_by_a_decoder_that_resumed() {
    // Blocks of 100 kB hold 99981 bytes, if there are no runs to shorten.
    let text: Vec<u8> = (0..(6 << 20) / 99_981 * 99_981 + 1).map(|n: usize| (n * 7 / 3 % 251) as u8).collect();
    let mut file = piped("bzip2", &["-1"], &text);
    file.extend(piped("bzip2", &["-1"], b"more"));
    let data = [text, b"more".to_vec()].concat();
    let opened = open_in(&file, 0);
    assert!(opened.points() >= 2);
    assert_eq!(read(&opened, data.len() as u64 - 100, 100).unwrap(), data[data.len() - 100..]);
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(400_000, 6);
    let good = piped("bzip2", &["-1"], &data);
    let size = good.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut wrong = good.clone();
        wrong[at..at + bytes.len()].copy_from_slice(bytes);
        line(INFO.open, &wrong)
    };
    assert_eq!(with(0, b"PK"), "it is not a bzip2 file: it begins with 504b68, not 425a68");
    assert_eq!(
        with(3, b"0"),
        "the bzip2 stream at 0 has the block size 30; 31 to 39 (1 to 9 times 100 kB) are possible"
    );
    // The number of a block, its CRC, where the sorted data begins, and the CRC of the stream.
    for (at, bytes) in [(4, &[0; 6][..]), (10, &[1, 2, 3, 4]), (14, &[0xff; 3]), (size - 3, &[0x55; 3])] {
        let said = with(at, bytes);
        assert!(said.starts_with("the bzip2 data before "), "{said}");
        assert!(said.ends_with(" is wrong, or has the wrong CRC"), "{said}");
    }
    assert_eq!(line(INFO.open, b"BZh"), "the file ends after 3 bytes, within the header of a bzip2 stream");
    assert_eq!(
        line(INFO.open, &good[..size - 5]),
        format!("the file ends after {} bytes, within a bzip2 stream", size - 5)
    );
    cut_anywhere(INFO.open, &good, &data);
}

#[test]
fn a_short_start_is_no_signature() {
    let good = piped("bzip2", &[], b"hello");
    assert_eq!((INFO.probe)(&good), Ok(true));
    assert_eq!((INFO.probe)(&piped("bzip2", &[], b"")), Ok(true));
    assert_eq!((INFO.probe)(&b"BZh9 is how this text begins".to_vec()), Ok(false));
}

#[test]
fn a_bomb_takes_no_room() {
    let bomb = piped("bzip2", &["-9"], &vec![0; 128 << 20]);
    assert!(bomb.len() < 1000);
    let file = open_in(&bomb, 0);
    assert_eq!((file.size(), file.starts()), (128 << 20, 0));
    assert!(read(&file, 50 << 20, 1 << 20).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(file.starts(), 0, "what is known to be zero is not decoded again");
}
