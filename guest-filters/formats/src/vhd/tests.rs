//! Images of qemu-img, differencing images of a writer, and images that are wrong.

use rbdkit_filter_sdk::image::ExtentList;

use super::*;
use crate::testing::{Dir, read_all, run, sample, source};

const BLOCK: usize = 2 << 20;

fn made(content: &[u8], options: &str) -> Vec<u8> {
    let dir = Dir::new(&format!("vhd-{}-{options}", content.len()));
    let (raw, image) = (dir.file("raw", content), dir.path("image"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", options, &raw, &image]);
    std::fs::read(&image).unwrap()
}

fn opened(bytes: &[u8]) -> Image {
    open(source(bytes), || Ok(None)).unwrap()
}

fn refused(bytes: &[u8]) -> String {
    open(source(bytes), || Ok(None)).err().expect("an image that is wrong").to_string()
}

/// Writes the checksum at `at` of the bytes from `start` on.
fn sign(bytes: &mut [u8], start: usize, length: usize, at: usize) {
    let sum = footer::checksum(&bytes[start..start + length], at);
    bytes[start + at..start + at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Changes a field of the footer and of its copy, if there is one.
fn with_footer(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = bytes.len() - 512;
    for start in [end, 0] {
        if bytes[start..].starts_with(b"conectix") {
            bytes[start + at..start + at + value.len()].copy_from_slice(value);
            sign(&mut bytes, start, 512, 64);
        }
    }
    bytes
}

/// Changes a field of the header.
fn with_header(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[512 + at..512 + at + value.len()].copy_from_slice(value);
    sign(&mut bytes, 512, 1024, 36);
    bytes
}

/// Changes an entry of the table.
fn with_entry(bytes: &[u8], number: usize, entry: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let table = u64::from_be_bytes(bytes[512 + 16..512 + 24].try_into().unwrap()) as usize;
    bytes[table + number * 4..][..4].copy_from_slice(&entry.to_be_bytes());
    bytes
}

/// Three blocks and a part of a fourth. The second one is not there.
fn content() -> Vec<u8> {
    let mut content = sample(3 * BLOCK + 1536, 1);
    content[BLOCK..2 * BLOCK].fill(0);
    content[2 * BLOCK] = 1;
    content
}

/// A differencing image of 3 blocks of 4 KiB. The first block has the sectors 0, 2 and 7, the third
/// one has all, and the second one is not there.
fn differencing() -> Vec<u8> {
    let mut bytes = vec![0; 512 + 1024 + 512];
    bytes[..8].copy_from_slice(b"conectix");
    bytes[12..16].copy_from_slice(&0x10000u32.to_be_bytes());
    bytes[16..24].copy_from_slice(&512u64.to_be_bytes());
    bytes[28..32].copy_from_slice(b"win ");
    bytes[48..56].copy_from_slice(&12288u64.to_be_bytes());
    bytes[60..64].copy_from_slice(&4u32.to_be_bytes());
    sign(&mut bytes, 0, 512, 64);
    bytes[512..520].copy_from_slice(b"cxsparse");
    bytes[512 + 16..512 + 24].copy_from_slice(&1536u64.to_be_bytes());
    bytes[512 + 24..512 + 28].copy_from_slice(&0x10000u32.to_be_bytes());
    bytes[512 + 28..512 + 32].copy_from_slice(&3u32.to_be_bytes());
    bytes[512 + 32..512 + 36].copy_from_slice(&4096u32.to_be_bytes());
    for (n, unit) in "C:\\parent.vhd".encode_utf16().enumerate() {
        bytes[512 + 64 + n * 2..][..2].copy_from_slice(&unit.to_be_bytes());
    }
    // A locator with a path of Windows, behind the blocks.
    let text: Vec<u8> = "..\\base.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let locator = 512 + 576;
    bytes[locator..locator + 4].copy_from_slice(b"W2ru");
    bytes[locator + 8..locator + 12].copy_from_slice(&(text.len() as u32).to_be_bytes());
    let place = 2048 + 2 * (512 + 4096u64);
    bytes[locator + 16..locator + 24].copy_from_slice(&place.to_be_bytes());
    sign(&mut bytes, 512, 1024, 36);
    bytes[1536..2048].fill(0xff);
    bytes[1536..1540].copy_from_slice(&4u32.to_be_bytes());
    bytes[1544..1548].copy_from_slice(&13u32.to_be_bytes());
    for (bitmap, byte) in [(0b1010_0001, 0xaa), (0xff, 0xcc)] {
        let start = bytes.len();
        bytes.resize(start + 512 + 4096, byte);
        bytes[start..start + 512].fill(0);
        bytes[start] = bitmap;
    }
    bytes.extend(text);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_within(..512);
    bytes
}

#[test]
fn what_qemu_wrote_is_read() {
    let content = content();
    for options in ["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"] {
        let image = opened(&made(&content, options));
        assert!(read_all(&image) == Ok(content.clone()), "{options}");
    }
}

#[test]
fn the_geometry_says_the_size_unless_a_program_is_known_that_says_it_in_the_footer() {
    let content = content();
    let bytes = made(&content, "subformat=dynamic");
    let image = opened(&bytes);
    let (cylinders, heads, sectors) = image.0.footer.geometry;
    let geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * 512;
    assert!(geometry > content.len() as u64, "the content is no whole number of cylinders");
    assert_eq!(image.size(), geometry);
    let all = read_all(&image).unwrap();
    assert!(all[..content.len()] == content && all[content.len()..].iter().all(|byte| *byte == 0));
    let current = image.0.footer.current_size;
    for creator in [b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"wa\0\0"] {
        assert_eq!(opened(&with_footer(&bytes, 28, creator)).size(), current, "{creator:?}");
    }
    for creator in [b"vpc ", b"qemu", b"vs  "] {
        let bytes = with_footer(&with_footer(&bytes, 28, creator), 48, &(1u64 << 20).to_be_bytes());
        assert_eq!(opened(&bytes).size(), geometry, "{creator:?}");
        let report = report(&source(&bytes)).unwrap();
        let line = format!("programs may disagree on the size: the geometry says {geometry} bytes, the footer 1048576");
        assert_eq!(report.dangers, [line]);
    }
    // The largest geometry says nothing.
    let largest = with_footer(&bytes, 56, &[0xff, 0xff, 16, 255]);
    assert_eq!(opened(&largest).size(), current);
}

#[test]
fn sectors_that_a_differencing_image_lacks_are_the_parents() {
    let parent: Rc<dyn Source> = Rc::new(vec![0x11; 6000]);
    let image = open(source(&differencing()), || Ok(Some(parent))).unwrap();
    let mut expected = vec![0x11; 6000];
    expected.resize(12288, 0);
    expected[..512].fill(0xaa);
    expected[1024..1536].fill(0xaa);
    expected[3584..4096].fill(0xaa);
    expected[8192..].fill(0xcc);
    assert!(read_all(&image) == Ok(expected.clone()));
    for (offset, length) in [(100, 700), (511, 2), (513, 3071), (4000, 300), (12287, 1)] {
        let mut part = vec![0; length];
        image.read(offset as u64, &mut part).unwrap();
        assert!(part == expected[offset..offset + length], "{length} at {offset}");
    }
    let mut list = ExtentList::new(0, 12288);
    image.extents(&mut list).unwrap();
    let answer = list.into_answer().unwrap();
    assert_eq!(
        answer.iter().map(|extent| (extent.offset, extent.length)).collect::<Vec<_>>(),
        [(0, 6000), (6000, 2192), (8192, 4096)]
    );
}

#[test]
fn the_parent_is_never_opened_by_its_name() {
    let line = "the image is a differencing disk and names the parent 'C:\\\\parent.vhd': no file is opened by its \
                name, give the parent with vhd-parent=";
    assert_eq!(refused(&differencing()), line);
    let report = report(&source(&differencing())).unwrap();
    assert_eq!(report.dangers, ["it names a parent: 'C:\\\\parent.vhd'", "it names a parent: '..\\\\base.vhd'"]);
    let dynamic = made(&content(), "subformat=dynamic");
    open(source(&dynamic), || panic!("a dynamic disk has no parent")).unwrap();
}

#[test]
fn the_footer_at_the_end_holds_and_its_copy_only_where_that_is_missing() {
    let content = content();
    let dynamic = made(&content, "subformat=dynamic,force_size=on");
    let cut = &dynamic[..dynamic.len() - 512];
    assert!(read_all(&opened(cut)) == Ok(content.clone()), "the copy is enough");
    let mut other = dynamic.clone();
    let end = other.len() - 512;
    other[end + 48 + 6] ^= 2;
    sign(&mut other, end, 512, 64);
    assert_eq!(refused(&other), "the footer and its copy at the start say different things");
    let mut no_copy = dynamic.clone();
    no_copy[0] = b'x';
    assert_eq!(refused(&no_copy), "the footer says a dynamic disk, and its copy is not at the start");
    // Whoever wrote to a fixed disk may have put a header there: it is data.
    let mut trick = made(&content, "subformat=fixed,force_size=on");
    trick[..2048].copy_from_slice(&dynamic[..2048]);
    assert!(read_all(&opened(&trick)).unwrap()[..2048] == dynamic[..2048]);
    let danger = "the fixed disk begins with a VHD header: other programs may read it as a dynamic image";
    assert_eq!(report(&source(&trick)).unwrap().dangers, [danger]);
    let mut start_only = trick[trick.len() - 512..].to_vec();
    start_only.resize(4096, 0);
    assert_eq!(refused(&start_only), "the image has no footer at its end, and a fixed disk must have it there");
}

#[test]
fn headers_that_are_wrong_are_refused_with_their_values() {
    let dynamic = made(&content(), "subformat=dynamic,force_size=on");
    let fixed = made(&[1; 4096], "subformat=fixed,force_size=on");
    let none = "it is not a VHD image: no footer begins with conectix";
    assert_eq!(refused(&[]), none);
    assert_eq!(refused(&[0; 511]), none);
    let mut sum = fixed.clone();
    sum[4096 + 100] ^= 1;
    let line = refused(&sum);
    assert!(line.starts_with("the checksum of the footer is 0x") && line.contains("and its bytes give 0x"), "{line}");
    let type_5 = "the footer has disk type 5: 2 (fixed), 3 (dynamic) and 4 (differencing) are supported";
    assert_eq!(refused(&with_footer(&fixed, 60, &5u32.to_be_bytes())), type_5);
    let version = "the footer has version 0x20000: 0x10000 is supported";
    assert_eq!(refused(&with_footer(&fixed, 12, &0x20000u32.to_be_bytes())), version);
    let larger = "the footer says a fixed disk of 8192 bytes, and the image has 4096 before the footer";
    assert_eq!(refused(&with_footer(&fixed, 48, &8192u64.to_be_bytes())), larger);
    let size = u64::MAX / 512 * 512;
    let most = format!("the footer says {size} bytes: a VHD has at most 2190433320960 (2040 GiB)");
    assert_eq!(refused(&with_footer(&fixed, 48, &u64::MAX.to_be_bytes())), most);
    for at in [u64::MAX, u64::MAX - 1023, dynamic.len() as u64] {
        let line =
            format!("the footer says that the header is at {at}, and the image ends after {} bytes", dynamic.len());
        assert_eq!(refused(&with_footer(&dynamic, 16, &at.to_be_bytes())), line);
        let line =
            format!("the header says that the table is at {at}, and the image ends after {} bytes", dynamic.len());
        assert_eq!(refused(&with_header(&dynamic, 16, &at.to_be_bytes())), line);
    }
    assert_eq!(
        refused(&with_footer(&dynamic, 16, &0u64.to_be_bytes())),
        "the header at 0 does not begin with cxsparse"
    );
    for block in [0u32, 256, 3 << 19] {
        let line = format!("the header says blocks of {block} bytes: it must be a power of two of at least 512");
        assert_eq!(refused(&with_header(&dynamic, 32, &block.to_be_bytes())), line);
    }
    let few = "the table has 3 blocks of 2097152 bytes, and the disk has 6292992 bytes";
    assert_eq!(refused(&with_header(&dynamic, 28, &3u32.to_be_bytes())), few);
    let mut sum = dynamic.clone();
    sum[512 + 200] ^= 1;
    assert!(refused(&sum).starts_with("the checksum of the header is 0x"));
}

#[test]
fn an_image_that_is_cut_at_any_place_is_refused_or_read_to_there() {
    let bytes = differencing();
    for length in 0..bytes.len() {
        let parent: Rc<dyn Source> = Rc::new(vec![0x11; 6000]);
        if let Ok(image) = open(source(&bytes[..length]), || Ok(Some(parent))) {
            let _ = read_all(&image);
        }
        report(&source(&bytes[..length])).unwrap();
    }
}

#[test]
fn blocks_that_lie_where_they_cannot_are_errors_and_others_are_read() {
    let content = content();
    let bytes = made(&content, "subformat=dynamic,force_size=on");
    let table = u64::from_be_bytes(bytes[512 + 16..512 + 24].try_into().unwrap());
    let stop = table + u64::from(u32::from_be_bytes(bytes[512 + 28..512 + 32].try_into().unwrap())) * 4;
    let room = bytes.len() - 512;
    let cases = [
        (0, "block 0 is at 0: the footer's copy is there, from 0 to 512".to_string()),
        (1, "block 0 is at 512: the header is there, from 512 to 1536".to_string()),
        (3, format!("block 0 is at 1536: the table is there, from {table} to {stop}")),
        (u32::MAX - 1, format!("block 0 ends at 2199025352192, and the image has {room} bytes for blocks")),
    ];
    for (entry, line) in cases {
        let image = opened(&with_entry(&bytes, 0, entry));
        let error = image.read(100, &mut [0; 10]).unwrap_err().to_string();
        assert_eq!(error, format!("the table says that {line}"));
        assert!(image.extents(&mut ExtentList::new(0, 512)).is_err());
        let mut last = vec![0; 1536];
        image.read(3 * BLOCK as u64, &mut last).unwrap();
        assert!(last == content[3 * BLOCK..], "the other blocks are read");
    }
    // Two blocks in one place are what the table says: both have its bytes.
    let first = u32::from_be_bytes(bytes[table as usize..][..4].try_into().unwrap());
    let all = read_all(&opened(&with_entry(&bytes, 1, first))).unwrap();
    assert!(all[..BLOCK] == all[BLOCK..2 * BLOCK] && all[..BLOCK] == content[..BLOCK]);
}
