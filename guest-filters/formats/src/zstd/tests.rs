//! zstd files of the tools, read anywhere; and wrong ones.

use super::*;
use crate::testing::{Dir, piped, run, sample, seekable_zstd, source};
use crate::unpack::Limits;
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};
use rbdkit_filter_sdk::image::read;

fn open_in(bytes: &[u8], room: usize) -> Unpacked<Zstd> {
    open(source(bytes), &Storage::Memory(room), Options::default()).unwrap()
}

/// A frame that says how much data it has. The tool has to have a file for that.
fn with_size(data: &[u8]) -> Vec<u8> {
    run("zstd", &["-q", "-c", "-1", &Dir::new("zstd").file("data", data)])
}

#[test]
fn what_zstd_and_pzstd_wrote_is_what_it_was() {
    for length in [0, 1, 300_000, 1_234_567] {
        let data = sample(length, 3);
        for args in [&["-1"][..], &["-19"], &["-3", "--no-check"], &["--fast=5"], &["-3", "--long=27"], &["-3", "-T2"]]
        {
            same(&open_in(&piped("zstd", args, &data), 1 << 30), &data);
        }
        same(&open_in(&piped("pzstd", &["-q", "-p", "2", "-1"], &data), 0), &data);
        same(&open_in(&with_size(&data), 0), &data);
    }
}

#[test]
fn frames_follow_each_other_and_some_are_skipped() {
    let data = sample(700_000, 4);
    let mut file = Vec::new();
    for part in data.chunks(90_000) {
        file.extend(piped("zstd", &["-1"], part));
        file.extend(piped("zstd", &[], &[]));
        file.extend(0x184d_2a5fu32.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        file.extend(b"hello");
    }
    same(&open_in(&file, 0), &data);
    let end = file.len();
    file.extend(b"more");
    assert_eq!(
        line(INFO.open, &file),
        format!("there is no zstd frame at {end}: it begins with 6d6f7265, not 28b52ffd")
    );
}

#[test]
fn frames_that_say_how_much_they_have_are_decoded_when_they_are_needed() {
    let data = sample(3 << 20, 5);
    let file: Vec<u8> = data.chunks(400_000).flat_map(with_size).collect();
    let opened = open_in(&file, 0);
    assert_eq!((opened.points(), opened.complete), (8, true));
    assert_eq!(starts_of_a_sequential_read(&opened), 1);
    random_reads(&opened, &data, 20);
}

#[test]
fn a_seek_table_tells_the_frames() {
    let data = sample(3 << 20, 6);
    for has_checksums in [false, true] {
        // These frames do not say how much data they have.
        let file = seekable_zstd(&data, 300_000, &["-1"], has_checksums);
        let opened = open_in(&file, 0);
        assert_eq!((opened.points(), opened.complete), (11, true));
        assert_eq!(starts_of_a_sequential_read(&opened), 1);
        random_reads(&opened, &data, 20);
        let report = (INFO.report)(&source(&file)).unwrap();
        assert_eq!(report.size, Some(3 << 20));
        assert_eq!(report.facts[0], ("frames in the seek table", "11".to_string()));
    }
    // A table of the second half only is of no use.
    let (first, second) = data.split_at(1 << 20);
    let both = [seekable_zstd(first, 300_000, &["-1"], true), seekable_zstd(second, 300_000, &["-1"], true)].concat();
    same(&open_in(&both, 0), &data);
}

#[test]
fn a_seek_table_that_lies_is_noticed() {
    let data = sample(1_000_000, 7);
    let good = seekable_zstd(&data, 300_000, &["-1", "--no-check"], true);
    let entries = good.len() - 9 - 4 * 12;
    let with = |at: usize, bytes: &[u8]| {
        let mut wrong = good.clone();
        wrong[at..at + bytes.len()].copy_from_slice(bytes);
        line(INFO.open, &wrong)
    };
    assert_eq!(
        with(entries + 4, &300_001u32.to_le_bytes()),
        "the index is wrong: the unit that ends around offset 300000 is not as long as it says"
    );
    assert_eq!(
        with(entries + 4, &299_999u32.to_le_bytes()),
        "the index is wrong: the unit that ends around offset 299999 is not as long as it says"
    );
    let wrong = with(entries + 8, &[1, 2, 3, 4]);
    assert!(
        wrong.starts_with("the zstd frame at 0 has the wrong checksum: the seek table says 04030201, and"),
        "{wrong}"
    );
    // The sizes in the file are wrong in two entries, and right together.
    let size = |n: usize| u32::from_le_bytes(good[entries + 12 * n..][..4].try_into().unwrap());
    let mut moved = good.clone();
    moved[entries..entries + 4].copy_from_slice(&(size(0) - 9).to_le_bytes());
    moved[entries + 12..entries + 16].copy_from_slice(&(size(1) + 9).to_le_bytes());
    let file = open(source(&moved), &Storage::Memory(0), Options::default()).unwrap();
    assert!(read(&file, 0, 200_000).is_ok() && read(&file, 300_000, 100).is_err());
    // Without its number, a reserved bit and more frames than there are it is no table.
    for (at, bytes) in [(good.len() - 1, 0), (good.len() - 5, 4), (good.len() - 7, 0xff)] {
        assert_eq!(with(at, &[bytes]), "it could be read");
    }
}

#[test]
fn a_frame_that_is_too_large_for_a_request_is_decoded_when_the_file_is_opened() {
    let data = sample(1 << 20, 8);
    let mut file = vec![0; 40 << 20];
    file.extend(&data);
    let file = open(source(&with_size(&file)), &Storage::Memory(1 << 30), Options::default()).unwrap();
    assert_eq!(read(&file, 40 << 20, 1 << 20).unwrap(), data);
    assert_eq!(file.starts(), 0, "all of it is kept");
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(200_000, 9);
    let good = with_size(&data);
    let size = good.len();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut wrong = good.clone();
        change(&mut wrong);
        line(INFO.open, &wrong)
    };
    assert_eq!(changed(&|file| file[0] = 0x50), "it is not a zstd file: it begins with 50b52ffd, not 28b52ffd");
    assert_eq!(changed(&|file| file[4] |= 8), "the zstd frame at 0 has the reserved bit of its header set");
    let wrong = changed(&|file| file[size - 1] ^= 1);
    assert!(wrong.starts_with("the zstd frame at 0 has the wrong checksum: it says "), "{wrong}");
    let wrong = changed(&|file| file[9..12].fill(0xff));
    assert!(wrong.starts_with("the zstd frame at 0: "), "{wrong}");
    assert_eq!(line(INFO.open, &good[..4]), "the file ends after 4 bytes, within the header of a zstd frame");
    assert_eq!(
        line(INFO.open, &good[..size - 6]),
        format!("the zstd frame at 0: the file ends after {} bytes", size - 6)
    );
    // The tool writes a size of four bytes after the descriptor for this much data.
    assert_eq!(good[4] >> 5, 0b101, "a single segment");
    for says in [199_999u32, 200_001] {
        assert_eq!(
            changed(&|file| file[5..9].copy_from_slice(&says.to_le_bytes())),
            format!("the zstd frame at 0 says that it has {says} bytes, and it has 200000")
        );
    }
    cut_anywhere(INFO.open, &good, &data);
}

#[test]
fn windows_dictionaries_and_frames_beyond_the_limits_are_refused() {
    let data = sample(200_000, 10);
    let with = |options: Options| {
        let file = piped("zstd", &["-1"], &data);
        line(|below| Ok(Rc::new(open(below, &Storage::Memory(0), options)?)), &file)
    };
    assert_eq!(with(Options::default()), "it could be read");
    let limits = Limits { max_block: Some(100_000), max_depth: 8 };
    let said = with(Options { limits, ..Options::default() });
    assert!(said.starts_with("a frame has ") && said.ends_with(" bytes, and the limit is 100000"), "{said}");
    assert_eq!(
        with(Options { max_window: 1 << 18, ..Options::default() }),
        "the zstd frame at 0 needs a window of 524288 bytes, and the limit is 262144: zstd-max-window=SIZE raises it, \
         and --filter-limit zstd:memory=SIZE gives the memory"
    );
    assert_eq!(
        line(INFO.open, &piped("zstd", &["-1", "--long=28"], &vec![1; 300 << 20])),
        "the zstd frame at 0 needs a window of 268435456 bytes, and the limit is 134217728: zstd-max-window=SIZE \
         raises it, and --filter-limit zstd:memory=SIZE gives the memory"
    );
    let dir = Dir::new("zstd-dictionary");
    let samples: Vec<String> = (0..20).map(|n| dir.file(&format!("{n}"), &sample(5000, n))).collect();
    let dictionary = dir.path("dictionary");
    let files: Vec<&str> = samples.iter().map(String::as_str).collect();
    run("zstd", &[&["-q", "--train", "--dictID=1337", "-o", &dictionary][..], &files].concat());
    let file = run("zstd", &["-q", "-c", "-D", &dictionary, files[0]]);
    assert_eq!(
        line(INFO.open, &file),
        "the zstd frame at 0 needs the dictionary 1337; files with dictionaries are not supported"
    );
}
