//! xz files of the tool, read anywhere; and wrong ones.

use super::*;
use crate::checksum::crc32;
use crate::testing::{piped, sample, source};
use crate::unpack::CHUNK;
use crate::unpack::checks::{cut_anywhere, line, random_reads, same, starts_of_a_sequential_read};

fn opened(bytes: &[u8]) -> Unpacked<Xz> {
    open(source(bytes), &Storage::Memory(0), Limits::default()).unwrap()
}

#[test]
fn what_xz_wrote_is_what_it_was() {
    for length in [0, 1, 300_000, 1_234_567] {
        let data = sample(length, 3);
        for args in [
            &["-6"][..],
            &["-9e", "-T1"],
            &["-0", "--block-size=100000"],
            &["-1", "-T2", "--block-size=65536", "-Csha256"],
            &["-0", "-Ccrc32"],
            &["-0", "-Cnone"],
            &["--x86", "--lzma2=preset=0"],
            &["--delta=dist=4", "--lzma2=preset=0"],
        ] {
            same(&opened(&piped("xz", args, &data)), &data);
        }
    }
}

#[test]
fn streams_follow_each_other_with_zeroes_between_them() {
    let data = sample(500_000, 4);
    let mut file = Vec::new();
    for (n, part) in data.chunks(120_000).enumerate() {
        file.extend(piped("xz", &["-0", ["-Ccrc32", "-Ccrc64"][n % 2], "--block-size=50000"], part));
        file.extend(vec![0; 4 * n]);
        file.extend(piped("xz", &["-0"], &[]));
    }
    file.extend([0; 5000]);
    let opened = opened(&file);
    assert_eq!(opened.points(), 4 * 3 + 1);
    same(&opened, &data);
    file.push(0);
    let end = file.len() - 5001;
    assert_eq!(line(INFO.open, &file), format!("5001 zeroes follow the xz stream that ends at {end}; 4, 8, ... may"));
}

#[test]
fn a_sequential_reader_continues_one_decoder() {
    let data = sample(3 << 20, 4);
    let file = opened(&piped("xz", &["-0", "--block-size=300000"], &data));
    assert_eq!(file.points(), 11);
    assert_eq!(starts_of_a_sequential_read(&file), 1);
    random_reads(&file, &data, 20);
}

#[test]
fn a_block_that_is_too_large_for_a_request_is_decoded_when_the_file_is_opened() {
    let data = sample(1 << 20, 5);
    let mut file = vec![0; 40 << 20];
    file.extend(&data);
    let file = open(source(&piped("xz", &["-0"], &file)), &Storage::Memory(1 << 30), Limits::default()).unwrap();
    assert_eq!(read(&file, 40 << 20, 1 << 20).unwrap(), data);
    assert_eq!(file.starts(), 0, "all of it is kept");
}

#[test]
fn wrong_files_are_refused_with_a_line() {
    let data = sample(200_000, 6);
    let good = piped("xz", &["-0", "--block-size=150000"], &data);
    let size = good.len();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut wrong = good.clone();
        change(&mut wrong);
        line(INFO.open, &wrong)
    };
    let the_stream = format!("the xz stream that ends at {size}");
    assert_eq!(
        changed(&|f| drop(f.drain(6..size - 14))),
        "the xz stream that ends at 20 is too short: it has 20 bytes at most"
    );
    assert_eq!(
        changed(&|f| f[size - 1] = b'X'),
        format!("{the_stream} does not end with YZ: the file is cut, or other data follows")
    );
    assert_eq!(changed(&|f| f[size - 5] ^= 1), format!("{the_stream} has the wrong CRC in its footer"));
    let with_footer = |index_size: u32| {
        changed(&|f| {
            f[size - 8..size - 4].copy_from_slice(&index_size.to_le_bytes());
            let crc = crc32(&f[size - 8..size - 2]);
            f[size - 12..size - 8].copy_from_slice(&crc.to_le_bytes());
        })
    };
    assert_eq!(
        with_footer(u32::MAX),
        format!("{the_stream} has an index of 17179869184 bytes; it can have {} at most", size - 24)
    );
    assert_eq!(with_footer(5), format!("{the_stream} has no index before its footer"));
    assert_eq!(changed(&|f| f[size - 16] ^= 1), format!("{the_stream} has the wrong CRC in its index"));
    assert_eq!(changed(&|f| f[0] = 0), "it is not an xz file: it begins with 00377a585a00, not fd377a585a00");
    assert_eq!(changed(&|f| f[8] ^= 1), "the xz stream at 0 has the wrong CRC in its header");
    assert_eq!(changed(&|f| f[13] ^= 1), "the xz block at 12 has the wrong CRC in its header");
    // The index says one block of 2^62 bytes, or too many blocks.
    let with_index = |content: &[u8]| {
        changed(&|f| {
            let old = (u32::from_le_bytes(f[size - 8..size - 4].try_into().unwrap()) as usize + 1) * 4;
            f.truncate(size - 12 - old);
            let mut index = content.to_vec();
            index.resize(index.len().next_multiple_of(4), 0);
            index.extend(crc32(&index).to_le_bytes());
            let words = (index.len() / 4 - 1) as u32;
            f.extend(index);
            let mut footer = words.to_le_bytes().to_vec();
            footer.extend([0, 4]);
            f.extend(crc32(&footer).to_le_bytes());
            f.extend(footer);
            f.extend(b"YZ");
        })
    };
    assert!(with_index(&[0, 0x80, 0x80, 0x80, 0x10]).ends_with("which says that it has 33554432 blocks"));
    let huge = [0, 1, 20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(with_index(&huge).contains("where one should begin"));
    assert!(with_index(&[0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]).contains("has blocks that do not fit before"));
    let small = Limits { max_block: Some(100_000), max_depth: 8 };
    assert_eq!(
        line(|below| Ok(Rc::new(open(below, &Storage::Memory(0), small)?)), &good),
        "a block has 150000 bytes, and the limit is 100000"
    );
    cut_anywhere(INFO.open, &good, &data);
}

#[test]
fn an_index_that_lies_about_sizes_is_noticed() {
    let data = sample(200_000, 6);
    let good = piped("xz", &["-0", "--block-size=150000"], &data);
    let mut index = super::index::blocks(&good).unwrap().0;
    index.units[1].out += 10;
    let below: Rc<dyn Source> = Rc::new(good);
    let codec = Xz { below: Rc::clone(&below), index };
    let file = Unpacked::open(below, codec, &Storage::Memory(0), CHUNK as usize).unwrap();
    let error = read(&file, 0, 100).unwrap_err().to_string();
    assert_eq!(error, "the index is wrong: the unit that ends around offset 150000 is not as long as it says");
}

#[test]
fn a_dictionary_beyond_the_limit_is_refused() {
    let data = sample(1000, 1);
    // The tool writes the size of the block if it uses threads; this way it does not.
    let file = piped("xz", &["--lzma2=preset=0,dict=128MiB", "-T1"], &data);
    assert_eq!(
        line(INFO.open, &file),
        "the xz block at 12 needs a dictionary of 134217728 bytes; the limit is 67108864"
    );
}
