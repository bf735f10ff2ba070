//! gzip files of the tools, read anywhere; and wrong ones.

use super::*;
use crate::testing::{piped, sample, source};
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};

fn open_in(bytes: &[u8], room: usize) -> Unpacked<Gzip> {
    open(source(bytes), &Storage::Memory(room)).unwrap()
}

#[test]
fn what_gzip_and_pigz_wrote_is_what_it_was() {
    for (length, level) in [(0, "-6"), (1, "-6"), (300_000, "-1"), (1 << 20, "-9"), (1_234_567, "-6")] {
        let data = sample(length, 3);
        same(&open_in(&piped("gzip", &[level], &data), 1 << 30), &data);
        same(&open_in(&piped("pigz", &["-p2", "-b128"], &data), 0), &data);
    }
}

#[test]
fn members_follow_each_other_and_zeroes_may_end_the_file() {
    let data = sample(700_000, 4);
    let mut file = Vec::new();
    for part in data.chunks(150_000) {
        file.extend(piped("gzip", &["-c"], part));
        file.extend(piped("gzip", &["-c"], &[]));
    }
    file.extend([0; 1000]);
    same(&open_in(&file, 1 << 30), &data);
    same(&open_in(&file, 0), &data);
    file.push(1);
    let end = file.len() - 1001;
    let expected = format!("there is no gzip member at {end}: it begins with 0000, not 1f8b");
    assert_eq!(line(INFO.open, &file), expected);
}

#[test]
fn without_room_for_chunks_decoding_resumes_at_points() {
    let data = sample(30 << 20, 5);
    let file = open_in(&piped("gzip", &["-1"], &data), 0);
    assert!((5..=8).contains(&file.points()), "{} points", file.points());
    assert_eq!(starts_of_a_sequential_read(&file), 1, "a sequential reader continues one decoder");
    random_reads(&file, &data, 30);
}

#[test]
fn runs_of_zeroes_are_told() {
    use rbdkit_filter_sdk::ExtentType;
    use rbdkit_filter_sdk::image::ExtentList;
    let mut data = vec![0; 4 << 20];
    data[1 << 20] = 1;
    let file = open_in(&piped("gzip", &[], &data), 1 << 30);
    let mut list = ExtentList::new(0, 4 << 20);
    file.extents(&mut list).unwrap();
    let list: Vec<_> = list.into_answer().unwrap().into_iter().map(|extent| (extent.length, extent.kind)).collect();
    let zero = ExtentType::ZERO;
    assert_eq!(list, [(1 << 20, zero), (256 << 10, ExtentType::empty()), ((3 << 20) - (256 << 10), zero)]);
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(400_000, 6);
    let good = piped("gzip", &["-n"], &data);
    let end = good.len() - 8;
    let mut wrong = good.clone();
    wrong[end] ^= 1;
    let (says, has) = (
        u32::from_le_bytes(wrong[end..end + 4].try_into().unwrap()),
        u32::from_le_bytes(good[end..end + 4].try_into().unwrap()),
    );
    assert_eq!(
        line(INFO.open, &wrong),
        format!("the gzip member that ends at {end} has the wrong CRC: it says {says:08x}, and the data has {has:08x}")
    );
    let mut wrong = good.clone();
    wrong[end + 4] ^= 1;
    let size = 400_000 ^ 1;
    assert_eq!(
        line(INFO.open, &wrong),
        format!("the gzip member that ends at {end} says that it has {size} bytes (modulo 2^32), and it has 400000")
    );
    let with = |at: usize, byte| {
        let mut wrong = good.clone();
        wrong[at] = byte;
        line(INFO.open, &wrong)
    };
    assert_eq!(with(2, 7), "the gzip member at 0 has the method 7; only 8 (deflate) exists");
    assert_eq!(with(3, 0x40), "the gzip member at 0 has the reserved flags 0x40");
    assert_eq!(with(10, 7), "the deflated data around 11 is wrong");
    assert_eq!(line(INFO.open, b"PK\x03\x04 and more"), "it is not a gzip file: it begins with 504b, not 1f8b");
    assert_eq!(line(INFO.open, &good[..5]), "the file ends after 5 bytes, within the header of a gzip member");
    assert_eq!(
        line(INFO.open, &good[..end - 5]),
        format!("the file ends after {} bytes, within a gzip member", end - 5)
    );
    cut_anywhere(INFO.open, &good, &data);
}

#[test]
fn a_bomb_takes_no_room() {
    let bomb = piped("gzip", &["-9"], &vec![0; 64 << 20]);
    assert!(bomb.len() < 70_000);
    let file = open_in(&bomb, 0);
    assert_eq!((file.size(), file.starts()), (64 << 20, 0));
    assert!(read(&file, 50 << 20, 1 << 20).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(file.starts(), 0, "what is known to be zero is not decoded again");
}
