//! Images of qemu-img, and headers that are wrong.

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};

fn made(content: &[u8], options: &[&str]) -> Vec<u8> {
    let dir = Dir::new("vdi");
    let (raw, image) = (dir.file("raw", content), dir.path("image"));
    run("qemu-img", &[&["convert", "-f", "raw", "-O", "vdi"], options, &[&raw, &image]].concat());
    std::fs::read(&image).unwrap()
}

/// A disk of three blocks, the last one of 1536 bytes. The second one is never written.
fn content() -> Vec<u8> {
    let mut content = sample((2 << 20) + 1536, 1);
    content[0] = 1;
    content[1 << 20..2 << 20].fill(0);
    content[2 << 20] = 1;
    content
}

fn with(bytes: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    Vdi::open(source(bytes), None).err().expect("an image that is wrong").to_string()
}

#[test]
fn what_qemu_wrote_is_read() {
    let content = content();
    for options in [&[][..], &["-o", "static=on"]] {
        let image = Vdi::open(source(&made(&content, options)), None).unwrap();
        assert!(read_all(&image) == Ok(content.clone()), "{options:?}");
        let kind = if options.is_empty() { "VDI image, dynamic" } else { "VDI image, fixed" };
        assert_eq!(image.description().as_deref(), Some(kind));
    }
}

#[test]
fn a_discarded_block_reads_as_zero() {
    let content = content();
    let bytes = made(&content, &[]);
    let map = u32::from_le_bytes(bytes[0x154..0x158].try_into().unwrap()) as usize;
    let image = Vdi::open(source(&with(&bytes, map, &DISCARDED.to_le_bytes())), None).unwrap();
    assert_eq!(image.0.place(5), Ok((BlockPlace::Zero, (1 << 20) - 5)));
    let mut expected = content;
    expected[..1 << 20].fill(0);
    assert!(read_all(&image) == Ok(expected));
}

/// The image as a differencing one: what was never written is the parent's. The third block was
/// discarded.
fn differencing(bytes: &[u8]) -> Vec<u8> {
    let bytes = with(&with(bytes, 0x4c, &[4]), 0x1a8, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let map = u32::from_le_bytes(bytes[0x154..0x158].try_into().unwrap()) as usize;
    with(&bytes, map + 8, &DISCARDED.to_le_bytes())
}

#[test]
fn what_a_differencing_image_lacks_is_the_parents() {
    let content = content();
    let bytes = differencing(&made(&content, &[]));
    let parent = sample(2 << 20, 9);
    let image = Vdi::open(source(&bytes), Some(source(&parent))).unwrap();
    let block = 1 << 20;
    let expected = [&content[..block], &parent[block..], &[0; 1536]].concat();
    assert!(read_all(&image) == Ok(expected));
    // A parent that is smaller reads as zero behind its end.
    let image = Vdi::open(source(&bytes), Some(source(&parent[..block + 100]))).unwrap();
    let expected = [&content[..block], &parent[block..block + 100], &vec![0; block - 100 + 1536]].concat();
    assert!(read_all(&image) == Ok(expected));
    let line = "the image holds only what differs from the image 04030201-0605-0807-0900-000000000000: give that \
                disk as vdi-parent=DISK";
    assert_eq!(refused(&bytes), line);
    let with_parent = Vdi::open(source(&made(&content, &[])), Some(source(&parent))).err();
    assert_eq!(with_parent, Some(Error::image("vdi-parent is given, and the image has no parent")));
}

#[test]
fn a_header_that_is_wrong_is_refused_with_its_value() {
    let bytes = made(&content(), &[]);
    assert_eq!(refused(&bytes[..60]), "it is not a VDI image: its signature is not at byte 64");
    let cut = "the header has 100 bytes, and a field at 424 of 16 bytes";
    assert_eq!(refused(&bytes[..100]), cut);
    let cases: [(usize, &[u8], &str); 12] = [
        (0x40, &[0; 4], "it is not a VDI image: its signature is not at byte 64"),
        (0x44, &[2, 0, 1, 0], "version 1.2 of VDI is not supported: 1.1 is"),
        (
            0x4c,
            &[4],
            "VDI images of the kind differencing with the parent 00000000-0000-0000-0000-000000000000 are not \
             supported: dynamic and fixed ones without a parent are, and differencing ones with one",
        ),
        (
            0x1a8,
            &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            "VDI images of the kind dynamic with the parent 04030201-0605-0807-0900-000000000000 are not \
             supported: dynamic and fixed ones without a parent are, and differencing ones with one",
        ),
        (0x168, &[0, 16], "sectors of 4096 bytes are not supported: 512 is the size"),
        (0x178, &[1], "blocks of 1048577 bytes are not supported: a power of two from 4096 to 1073741824 is"),
        (0x178, &[0; 4], "blocks of 0 bytes are not supported: a power of two from 4096 to 1073741824 is"),
        (0x17c, &[9], "blocks with 9 more bytes each are not supported"),
        (0x170, &[0xff; 8], "the disk has 18446744073709551615 bytes, and its 3 blocks of 1048576 bytes hold 3145728"),
        (0x180, &[2], "the disk has 2098688 bytes, and its 2 blocks of 1048576 bytes hold 2097152"),
        (0x180, &[0xff; 4], "the block map of 17179869180 bytes is at 512, and the image ends after 2098176 bytes"),
        (0x154, &[0xff; 4], "the block map of 12 bytes is at 4294967295, and the image ends after 2098176 bytes"),
    ];
    for (at, number, line) in cases {
        assert_eq!(refused(&with(&bytes, at, number)), line);
    }
}

#[test]
fn a_block_beyond_the_end_is_an_error_where_it_is() {
    let bytes = made(&content(), &[]);
    let image = Vdi::open(source(&with(&bytes, 512, &0xffff_fffdu32.to_le_bytes())), None).unwrap();
    let line = "block 0 is at 4503599624225792, and the image ends after 2098176 bytes";
    assert_eq!(image.read(0, &mut [0]), Err(Error::image(line)));
    assert_eq!(image.read(2 << 20, &mut [0]), Ok(()));
    let two = Vdi::open(source(&with(&bytes, 512, &[1, 0, 0, 0])), None).unwrap();
    assert_eq!(two.read(0, &mut [0]), Ok(()), "two blocks in one place harm nobody who reads");
}

#[test]
fn an_image_that_is_cut_anywhere_is_an_error_and_no_trap() {
    let bytes = made(&content(), &[]);
    for length in 0..1100 {
        if let Ok(image) = Vdi::open(source(&bytes[..length]), None) {
            assert!(read_all(&image).is_err(), "{length}");
        }
    }
}

#[test]
fn the_report_has_what_is_dangerous() {
    let bytes = made(&content(), &[]);
    let of = |bytes: &[u8]| (INFO.report)(&source(bytes)).unwrap();
    let report = of(&with(&bytes, 0x54, b"my disk"));
    assert_eq!(report.size, Some((2 << 20) + 1536));
    assert!(report.facts.contains(&("description", "'my disk'".into())));
    assert_eq!(report.dangers, [""; 0]);
    let dangers = of(&with(&bytes, 0x1a8, &[1])).dangers;
    assert_eq!(dangers[0], "it needs a parent image: 00000001-0000-0000-0000-000000000000");
    assert!(dangers[1].starts_with("it cannot be read: VDI images of the kind dynamic"));
}
