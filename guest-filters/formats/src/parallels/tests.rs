//! Images of qemu-img, the same in the older format, and headers that are wrong.

use super::*;
use crate::testing::{Dir, cut_anywhere, read_all, run, sample, source};

/// A disk whose last cluster has 1536 bytes. The second cluster is never written.
fn content() -> Vec<u8> {
    let mut content = sample((2 << 20) + 1536, 3);
    content[0] = 1;
    content[1 << 20..2 << 20].fill(0);
    content[2 << 20] = 1;
    content
}

fn made() -> Vec<u8> {
    let dir = Dir::new("parallels");
    let (raw, image) = (dir.file("raw", &content()), dir.path("image"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "parallels", &raw, &image]);
    let mut bytes = std::fs::read(&image).unwrap();
    // Some versions of qemu-img end with a part of a cluster.
    bytes.resize(bytes.len().next_multiple_of(1 << 20), 0);
    bytes
}

fn with(bytes: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

/// The image in the older format: its table counts sectors.
fn older(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = with(bytes, 0, OLD);
    for entry in 0..3 {
        let at = 64 + entry * 4;
        let number = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&(number * 2048).to_le_bytes());
    }
    // The upper half of the number of sectors means nothing.
    with(&bytes, 40, &[0xff; 4])
}

fn refused(bytes: &[u8]) -> String {
    Parallels::open(source(bytes)).err().expect("an image that is wrong").to_string()
}

#[test]
fn both_formats_are_read() {
    let bytes = made();
    assert_eq!(&bytes[..16], NEW);
    for (bytes, name) in [(older(&bytes), "WithoutFreeSpace"), (bytes, "WithouFreSpacExt")] {
        let image = Parallels::open(source(&bytes)).unwrap();
        assert!(read_all(&image) == Ok(content()), "{name}");
        assert_eq!(image.0.place((1 << 20) + 7), Ok((BlockPlace::Absent, (1 << 20) - 7)));
        assert_eq!(image.description(), Some(format!("Parallels image, {name}")));
    }
}

#[test]
fn an_image_that_was_not_closed_is_read_and_says_so() {
    let bytes = with(&made(), 44, &IN_USE.to_le_bytes());
    let image = Parallels::open(source(&bytes)).unwrap();
    assert!(image.is_in_use());
    assert_eq!(image.description().as_deref(), Some("Parallels image, WithouFreSpacExt, not closed"));
    let dangers = (INFO.report)(&source(&bytes)).unwrap().dangers;
    assert_eq!(dangers, ["it was not closed by the program that wrote it: its last writes may be missing"]);
}

#[test]
fn a_header_that_is_wrong_is_refused_with_its_value() {
    let bytes = made();
    let none = "it is not a Parallels image: it does not begin with WithoutFreeSpace or WithouFreSpacExt";
    for length in 0..64 {
        assert_eq!(refused(&bytes[..length]), none);
    }
    let size = bytes.len();
    let table = format!("the table of clusters of 17179869180 bytes is at 64, and the image ends after {size} bytes");
    let cases: [(usize, &[u8], &str); 6] = [
        (0, b"X", none),
        (16, &[3], "version 3 of Parallels' format is not supported: 2 is"),
        (28, &[0; 4], "clusters of 0 sectors are not supported: 1 to 2097152 sectors are"),
        (28, &[0xff; 4], "clusters of 4294967295 sectors are not supported: 1 to 2097152 sectors are"),
        (36, &[0xff; 8], "the disk has 18446744073709551615 sectors, and its 3 clusters of 2048 sectors hold 6144"),
        (32, &[0xff; 4], &table),
    ];
    for (at, number, line) in cases {
        assert_eq!(refused(&with(&bytes, at, number)), line);
    }
    assert_eq!(
        refused(&with(&bytes, 32, &[2])),
        "the disk has 4099 sectors, and its 2 clusters of 2048 sectors hold 4096"
    );
}

#[test]
fn a_cluster_beyond_the_end_is_an_error_where_it_is() {
    let bytes = with(&made(), 64, &[0xff; 4]);
    let size = bytes.len();
    let image = Parallels::open(source(&bytes)).unwrap();
    let line = format!("cluster 0 is at 4503599626321920, and the image ends after {size} bytes");
    assert_eq!(image.read(0, &mut [0]), Err(Error::image(line)));
    assert_eq!(image.read(1 << 20, &mut [0]), Ok(()));
}

#[test]
fn an_image_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for bytes in [made(), older(&made())] {
        cut_anywhere(&bytes, 0..1100, &content(), |image| Parallels::open(image).and_then(|image| read_all(&image)));
    }
}

#[test]
fn a_description_of_a_disk_is_refused_with_the_file_that_it_names() {
    let text = b"<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n<StorageData>\
        <Storage><Image><GUID>{5}</GUID><Type>Compressed</Type><File>/etc/passwd</File></Image></Storage>";
    let line = "this is a DiskDescriptor.xml, which only describes a Parallels disk: serve the image itself, whose \
                first file it calls '/etc/passwd'";
    assert!(probe(&text.to_vec()).unwrap());
    assert_eq!(refused(text), line);
    let (found, image) = crate::auto::open(source(text), &crate::auto::Wanted::Found { depth: 4 }).unwrap();
    assert!(image.is_none());
    assert_eq!(found.refused, Some(format!("parallels: {line}")));
    // Another text is no image, and one without the name of a file is refused as well.
    assert!(!probe(&b"<?xml version='1.0'?><html>".to_vec()).unwrap());
    assert!(!probe(&b"<?x".to_vec()).unwrap());
    assert!(refused(b"<?xml?><Parallels_disk_image><File>").ends_with("it calls ''"));
}
