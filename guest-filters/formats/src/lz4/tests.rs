//! lz4 files of the tool, read anywhere; and wrong ones.

use super::*;
use crate::testing::{piped, sample, source};
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};

fn open_in(bytes: &[u8], room: usize) -> Unpacked<Lz4> {
    open(source(bytes), &Storage::Memory(room)).unwrap()
}

/// A frame that says how much data it has. The tool has to have a file for that.
fn with_size(data: &[u8]) -> Vec<u8> {
    let dir = crate::testing::Dir::new("lz4");
    crate::testing::run("lz4", &["-q", "-c", "--content-size", &dir.file("data", data)])
}

#[test]
fn what_lz4_wrote_is_what_it_was() {
    for length in [0, 1, 300_000, 1_234_567] {
        let data = sample(length, 3);
        for args in [
            &["-1"][..],
            &["-9", "-B4"],
            &["-1", "-B4", "-BD"],
            &["-1", "-B5", "-BX", "-BD"],
            &["-1", "-B6", "-BX", "--no-frame-crc"],
            &["-l"],
        ] {
            let file = piped("lz4", args, &data);
            same(&open_in(&file, 1 << 30), &data);
            same(&open_in(&file, 0), &data);
        }
        same(&open_in(&with_size(&data), 0), &data);
    }
}

#[test]
fn frames_of_all_kinds_follow_each_other() {
    let data = sample(700_000, 4);
    let mut file = Vec::new();
    for (n, part) in data.chunks(90_000).enumerate() {
        file.extend(piped("lz4", [&["-1"][..], &["-l"], &["-1", "-BD", "-B4"]][n % 3], part));
        file.extend(piped("lz4", &[], &[]));
        file.extend(0x184d_2a53u32.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        file.extend(b"hello");
    }
    same(&open_in(&file, 1 << 30), &data);
    let end = file.len();
    file.extend(b"more");
    assert_eq!(
        line(INFO.open, &file),
        format!("there is no lz4 frame at {end}: it begins with 6d6f7265, not 04224d18 or 02214c18")
    );
}

#[test]
fn frames_that_say_how_much_they_have_are_decoded_when_they_are_needed() {
    let data = sample(3 << 20, 5);
    let file: Vec<u8> = data.chunks(400_000).flat_map(with_size).collect();
    let opened = open_in(&file, 0);
    assert_eq!((opened.points(), opened.starts()), (8, 0));
    assert_eq!(starts_of_a_sequential_read(&opened), 1);
    random_reads(&opened, &data, 20);
    assert!(opened.complete);
}

#[test]
fn without_room_for_chunks_decoding_resumes_at_blocks() {
    let data = sample(20 << 20, 6);
    for args in [&["-1", "-B5"][..], &["-1", "-B4", "-BD"], &["-l"]] {
        let file = open_in(&piped("lz4", args, &data), 0);
        assert!((4..=6).contains(&file.points()), "{args:?}: {} points", file.points());
        assert!(file.points.iter().skip(1).all(|point| point.at & 0xff != 0), "all are within the frame");
        assert_eq!(starts_of_a_sequential_read(&file), 1);
        random_reads(&file, &data, 20);
    }
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(400_000, 7);
    let good = piped("lz4", &["-1", "-B4", "-BX"], &data);
    let size = good.len();
    let changed = |good: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut wrong = good.to_vec();
        change(&mut wrong);
        line(INFO.open, &wrong)
    };
    // A header with these flags, and the checksum that it should have.
    let header = |flags: &[u8]| {
        changed(&good, &|file| {
            let mut descriptor = flags.to_vec();
            descriptor.push((twox_hash::XxHash32::oneshot(0, flags) >> 8) as u8);
            file.splice(4..7, descriptor);
        })
    };
    assert_eq!(
        changed(&good, &|file| file[0] = 0x50),
        "it is not an lz4 file: it begins with 50224d18, not 04224d18 or 02214c18"
    );
    assert_eq!(header(&[0x80, 0x40]), "the lz4 frame at 0 has version 2; version 1 is supported");
    assert_eq!(header(&[0x42, 0x40]), "the lz4 frame at 0 has the flags 4240, which are not possible");
    assert_eq!(header(&[0x40, 0x30]), "the lz4 frame at 0 has the flags 4030, which are not possible");
    assert_eq!(header(&[0x40, 0x41]), "the lz4 frame at 0 has the flags 4041, which are not possible");
    assert_eq!(
        header(&[0x41, 0x40, 57, 5, 0, 0]),
        "the lz4 frame at 0 needs the dictionary 1337; files with dictionaries are not supported"
    );
    let sum = good[6];
    assert_eq!(
        changed(&good, &|file| file[6] ^= 1),
        format!("the lz4 frame at 0 has the wrong checksum in its header: {:02x}, and not {sum:02x}", sum ^ 1)
    );
    assert_eq!(
        changed(&good, &|file| file[7..11].copy_from_slice(&65537u32.to_le_bytes())),
        "the lz4 block at 7 has 65537 bytes; blocks of its frame have 65536 at most"
    );
    let line_of_block = changed(&good, &|file| file[20] ^= 1);
    assert!(line_of_block.starts_with("the lz4 block at 7 has the wrong checksum: it says "), "{line_of_block}");
    let line_of_frame = changed(&good, &|file| file[size - 1] ^= 1);
    assert!(line_of_frame.starts_with("the lz4 frame at 0 has the wrong checksum: it says "), "{line_of_frame}");
    let plain = piped("lz4", &["-1", "--no-frame-crc"], &data);
    let line_of_data = changed(&plain, &|file| file[11..40].fill(0));
    assert!(line_of_data.starts_with("the lz4 block at 7 is wrong: "), "{line_of_data}");
    let sized = with_size(&data);
    let wrong_size = |size: u64| {
        changed(&sized, &|file| {
            file[6..14].copy_from_slice(&size.to_le_bytes());
            file[14] = (twox_hash::XxHash32::oneshot(0, &file[4..14]) >> 8) as u8;
        })
    };
    assert_eq!(
        wrong_size(399_999),
        "the index is wrong: the unit that ends around offset 399999 is not as long as it says"
    );
    assert_eq!(wrong_size(400_001), "the lz4 frame at 0 says that it has 400001 bytes, and it has 400000");
    assert_eq!(
        wrong_size(u64::MAX),
        format!("the lz4 frame at 0 says that it has {} bytes, and it has 400000", u64::MAX)
    );
    assert_eq!(line(INFO.open, &good[..5]), "the file ends after 5 bytes, within the header of an lz4 frame");
    let skipped = [&0x184d_2a50u32.to_le_bytes()[..], &[0xff; 4]].concat();
    assert_eq!(line(INFO.open, &skipped), "the skippable frame at 0 ends at 4294967303, and the file after 8 bytes");
    cut_anywhere(INFO.open, &good, &data);
}
