//! lzip files of the tools, read anywhere; and wrong ones.

use super::*;
use crate::testing::{piped, sample, source};
use crate::unpack::Limits;
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};

fn opened(bytes: &[u8]) -> Unpacked<Lzip> {
    open(source(bytes), &Storage::Memory(0), Limits::default()).unwrap()
}

#[test]
fn what_lzip_and_plzip_wrote_is_what_it_was() {
    for length in [0, 1, 300_000, 1_234_567] {
        let data = sample(length, 3);
        same(&opened(&piped("lzip", &["-6"], &data)), &data);
        same(&opened(&piped("lzip", &["-0", "-b100k"], &data)), &data);
        same(&opened(&piped("plzip", &["-1", "-n2", "-B200k"], &data)), &data);
    }
}

#[test]
fn a_sequential_reader_continues_one_decoder() {
    let data = sample(3 << 20, 4);
    let file = opened(&piped("plzip", &["-0", "-B1MiB"], &data));
    assert_eq!(file.points(), 3, "members of 1 MiB");
    assert_eq!(starts_of_a_sequential_read(&file), 1);
    random_reads(&file, &data, 20);
}

#[test]
fn a_member_that_is_too_large_for_a_request_is_decoded_when_the_file_is_opened() {
    let data = sample(1 << 20, 5);
    let mut file = vec![0; 40 << 20];
    file.extend(&data);
    let file =
        open(source(&piped("plzip", &["-0", "-B64MiB"], &file)), &Storage::Memory(1 << 30), Limits::default()).unwrap();
    assert_eq!(read(&file, 40 << 20, 1 << 20).unwrap(), data);
    assert_eq!(file.starts(), 0, "all of it is kept");
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(200_000, 6);
    let good = piped("lzip", &["-6"], &data);
    let size = good.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut wrong = good.clone();
        wrong[at..at + bytes.len()].copy_from_slice(bytes);
        line(INFO.open, &wrong)
    };
    assert!(
        with(size - 20, &[1, 2, 3, 4]).starts_with("the lzip member at 0 has the wrong CRC: it says 04030201, and")
    );
    assert_eq!(
        with(size - 16, &1u64.to_le_bytes()),
        "the index is wrong: the unit that ends around offset 1 is not as long as it says"
    );
    assert_eq!(
        with(size - 16, &u64::MAX.to_le_bytes()),
        "the sizes of the lzip members are more than 2^63 bytes together"
    );
    assert_eq!(
        with(size - 8, &u64::MAX.to_le_bytes()),
        format!(
            "the lzip member that ends at {size} says that it has {} bytes; it can have 26 to {size}. Data after the \
             last member is not supported",
            u64::MAX
        )
    );
    assert_eq!(with(5, &[29]), "the lzip member at 0 needs a dictionary of 536870912 bytes; the limit is 67108864");
    assert_eq!(with(5, &[31]), "the lzip member at 0 has a dictionary of 2^31 bytes; 2^12 to 2^29 are possible");
    assert_eq!(with(4, &[0]), "the lzip member at 0 has version 0; version 1 is supported");
    assert_eq!(with(0, b"X"), "it is not an lzip file: it begins with 585a4950, not 4c5a4950");
    let small = Limits { max_block: Some(100_000), max_depth: 8 };
    assert_eq!(
        line(|below| Ok(Rc::new(open(below, &Storage::Memory(0), small)?)), &good),
        "a member has 200000 bytes, and the limit is 100000"
    );
    cut_anywhere(INFO.open, &good, &data);
}
