//! Images of bximage, and headers that are wrong.

use super::*;
use crate::testing::{Dir, cut_anywhere, read_all, run, sample, source};

/// Three sectors of which the second is never written, and after a long hole some more. bximage
/// makes extents of 4 KiB of it.
fn content() -> Vec<u8> {
    let mut content = vec![0; (1 << 20) + 512];
    content[..512].fill(1);
    content[1024..1536].fill(2);
    let tail = content.len() - 100_000;
    content[tail..].copy_from_slice(&sample(100_000, 5));
    content[tail + 99_999] = 1;
    content
}

fn made() -> Vec<u8> {
    let dir = Dir::new("bochs");
    let (raw, image) = (dir.file("raw", &content()), dir.path("image"));
    run("bximage", &["-func=convert", "-imgmode=growing", "-q", &raw, &image]);
    std::fs::read(&image).unwrap()
}

fn with(bytes: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    Bochs::open(source(bytes)).err().expect("an image that is wrong").to_string()
}

/// The image with a header of the first version, which has no time before the size.
fn older(bytes: &[u8]) -> Vec<u8> {
    let size = bytes[88..96].to_vec();
    with(&with(bytes, 64, &[0, 0, 1, 0]), 84, &size)
}

#[test]
fn both_versions_are_read() {
    let bytes = made();
    for bytes in [older(&bytes), bytes] {
        let image = Bochs::open(source(&bytes)).unwrap();
        assert!(read_all(&image) == Ok(content()));
        assert_eq!(image.0.place(512), Ok((BlockPlace::Absent, 512)), "a sector that was never written");
        assert!(matches!(image.0.place(1024), Ok((BlockPlace::Stored(_), 512))));
    }
}

#[test]
fn a_header_that_is_wrong_is_refused_with_its_value() {
    let bytes = made();
    let none = "it is not a Bochs image: it does not begin with 'Bochs Virtual HD Image'";
    for length in 0..512 {
        assert_eq!(refused(&bytes[..length]), none);
    }
    let size = bytes.len();
    let extents = u32::from_le_bytes(bytes[72..76].try_into().unwrap());
    let holds = u64::from(extents) * 4096;
    let over = "are not supported: they hold only what differs from another image";
    let (long, large) = (
        format!("the catalog of 17179869180 bytes is at 512, and the image ends after {size} bytes"),
        format!("the disk has 18446744073709551615 bytes, and its {extents} extents of 4096 bytes hold {holds}"),
    );
    let behind =
        format!("the catalog of {} bytes is at 4294967295, and the image ends after {size} bytes", extents * 4);
    let (undoable, volatile) =
        (format!("images of the subtype 'Undoable' {over}"), format!("images of the subtype 'Volatile' {over}"));
    let cases: [(usize, &[u8], &str); 11] = [
        (0, b"X", none),
        (32, b"Sparse\0", "images of the type 'Sparse' are not supported: Redolog is"),
        (48, b"Undoable\0", &undoable),
        (48, b"Volatile\0", &volatile),
        (64, &[0, 0, 3, 0], "version 0x30000 of Bochs' format is not supported: 0x10000 and 0x20000 are"),
        (80, &[0; 4], "extents of 0 bytes are not supported: a power of two from 512 to 8388608 is"),
        (80, &[0, 0, 0, 1], "extents of 16777216 bytes are not supported: a power of two from 512 to 8388608 is"),
        (76, &[0; 4], "bitmaps of 0 bytes are too small for extents of 8 sectors"),
        (88, &[0xff; 8], &large),
        (72, &[0xff; 4], &long),
        (68, &[0xff; 4], &behind),
    ];
    for (at, number, line) in cases {
        assert_eq!(refused(&with(&bytes, at, number)), line);
    }
    let dangers = (INFO.report)(&source(&with(&bytes, 48, b"Volatile\0"))).unwrap().dangers;
    assert_eq!(dangers[0], "it holds only what differs from another image");
}

#[test]
fn an_extent_beyond_the_end_is_an_error_where_it_is() {
    let bytes = made();
    let size = bytes.len();
    let image = Bochs::open(source(&with(&bytes, 512, &0xffff_fffeu32.to_le_bytes()))).unwrap();
    let error = image.read(0, &mut [0]).unwrap_err().to_string();
    assert!(
        error.starts_with("extent 0 is at ") && error.ends_with(&format!("the image ends after {size} bytes")),
        "{error}"
    );
    // The bitmap is within the image, and sectors of the extent are not.
    let cut = Bochs::open(source(&bytes[..size - 4096])).unwrap();
    let at = cut.size() - 1;
    let error = cut.read(at, &mut [0]).unwrap_err().to_string();
    assert!(error.starts_with("the image names 1 bytes at "), "{error}");
    // Bitmaps of 4 GiB put each extent far behind the last.
    let wide = Bochs::open(source(&with(&bytes, 76, &[0xff; 4]))).unwrap();
    assert!(wide.read(wide.size() - 1, &mut [0]).is_err());
}

#[test]
fn an_image_that_is_cut_anywhere_is_an_error_and_no_trap() {
    for bytes in [made(), older(&made())] {
        cut_anywhere(&bytes, 0..2000, &content(), |image| Bochs::open(image).and_then(|image| read_all(&image)));
    }
}
