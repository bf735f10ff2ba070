//! Images that are right.

use rbdkit_filter_sdk::image::ExtentList;
use rbdkit_filter_sdk::{Extent, ExtentType};

use super::*;
use crate::testing::vhdx::{BLOCKS, DATA_WRITE, Layout, put, seal};
use crate::testing::{Dir, run, sample};

const MIB: usize = 1 << 20;

fn made(content: &[u8], options: &str) -> Vec<u8> {
    let dir = Dir::new("vhdx");
    let (raw, image) = (dir.file("raw", content), dir.path("image"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "-o", options, &raw, &image]);
    std::fs::read(&image).unwrap()
}

/// Three blocks and a part of a fourth. The second one is not there.
fn content() -> Vec<u8> {
    let mut content = sample(3 * MIB + 1536, 1);
    content[0] = 1;
    content[MIB..2 * MIB].fill(0);
    content[2 * MIB] = 1;
    content
}

fn extents(image: &Image) -> Vec<Extent> {
    let mut list = ExtentList::new(0, image.size());
    image.extents(&mut list).unwrap();
    list.into_answer().unwrap()
}

const DATA: ExtentType = ExtentType::empty();
const HOLE: ExtentType = ExtentType::HOLE.union(ExtentType::ZERO);

fn extent(offset: usize, length: usize, kind: ExtentType) -> Extent {
    Extent { offset: offset as u64, length: length as u64, kind }
}

#[test]
fn what_qemu_wrote_is_read() {
    let content = content();
    let most = "subformat=dynamic,block_size=256M,log_size=3M";
    for options in ["block_size=1M", "subformat=dynamic,block_size=8M", "subformat=fixed,block_size=1M", most] {
        let image = opened(&made(&content, options));
        assert!(read_all(&image) == Ok(content.clone()), "{options}");
        let kind = if options.contains("fixed") { "VHDX image, fixed" } else { "VHDX image, dynamic" };
        assert_eq!(image.description().as_deref(), Some(kind));
    }
    let image = opened(&made(&content, "block_size=1M"));
    let end = 3 * MIB + 1536;
    assert_eq!(extents(&image), [extent(0, MIB, DATA), extent(MIB, MIB, HOLE), extent(2 * MIB, end - 2 * MIB, DATA)]);
}

#[test]
fn a_disk_of_64_tebibytes_is_read_through_one_entry_at_a_time() {
    let dir = Dir::new("vhdx-large");
    let path = dir.path("image");
    run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=256M", &path, "64T"]);
    let image = opened(&std::fs::read(&path).unwrap());
    assert_eq!(image.size(), 64 << 40);
    let mut last = [1; 512];
    image.read((64 << 40) - 512, &mut last).unwrap();
    assert_eq!(last, [0; 512]);
    let mut list = ExtentList::new(0, 64 << 40);
    image.extents(&mut list).unwrap();
    let answer = list.into_answer().unwrap();
    assert_eq!((answer.len(), answer[0].kind), (1, HOLE));
}

#[test]
fn the_header_with_the_larger_number_and_a_right_checksum_is_current() {
    let mut image = Layout::default().image();
    let read = |image: &[u8]| VhdxHeader::find(&*source(image)).map(|header| header.sequence);
    assert_eq!(read(&image), Ok(8));
    image[(128 << 10) + 100] ^= 1;
    assert_eq!(read(&image), Ok(7), "the second one is torn");
    image[(128 << 10) + 100] ^= 1;
    image[64 << 10] = b'x';
    assert_eq!(read(&image), Ok(8));
    image[64 << 10] = b'h';
    put(&mut image, (64 << 10) + 8, &u64::MAX.to_le_bytes());
    seal(&mut image);
    assert_eq!(read(&image), Ok(u64::MAX));
    put(&mut image, (128 << 10) + 8, &u64::MAX.to_le_bytes());
    seal(&mut image);
    assert_eq!(read(&image), Ok(u64::MAX), "two equal headers are one");
}

#[test]
fn the_second_region_table_holds_if_the_first_one_is_torn() {
    let bytes = Layout { table: vec![(0, 6, 4)], blocks: vec![9; MIB], ..Layout::default() }.image();
    let mut torn = bytes.clone();
    torn[(192 << 10) + 50] ^= 1;
    assert_eq!(first_byte(&torn), Ok(9));
    assert_eq!(report(&torn).dangers, [""; 0]);
    let mut differ = bytes;
    differ[(256 << 10) + 16 + 64] = 1;
    seal(&mut differ);
    assert_eq!(first_byte(&differ), Ok(9));
    assert_eq!(report(&differ).dangers, ["the two region tables say different things: the first one is read"]);
}

#[test]
fn blocks_have_the_bytes_that_their_state_says() {
    // Not present, undefined, zero, unmapped, and unmapped as drafts had it.
    for state in [0, 1, 2, 3, 5] {
        let table = vec![(0, state, 4), (1, 6, 4)];
        let image = opened(&Layout { table, blocks: vec![7; MIB], ..Layout::default() }.image());
        let expected = [vec![0; MIB], vec![7; MIB], vec![0; 2 * MIB]].concat();
        assert!(read_all(&image) == Ok(expected), "{state}");
        assert_eq!(
            extents(&image),
            [extent(0, MIB, HOLE), extent(MIB, MIB, DATA), extent(2 * MIB, 2 * MIB, HOLE)],
            "{state}"
        );
    }
}

#[test]
fn the_last_block_need_not_be_whole_in_the_image() {
    let layout = Layout { size: MIB as u64 + 512, table: vec![(1, 6, 4)], ..Layout::default() };
    let image = opened(&Layout { blocks: vec![5; 512], ..layout.clone() }.image());
    assert!(read_all(&image) == Ok([vec![0; MIB], vec![5; 512]].concat()));
    let image = opened(&Layout { blocks: vec![5; 511], ..layout }.image());
    let line = "block 1 ends at 4194816, and the image after 4194815 bytes";
    assert_eq!(image.read(MIB as u64, &mut [0]).unwrap_err().to_string(), line);
}

/// A differencing image with blocks of 1 MiB and sectors of this size. The entry behind those of
/// the first chunk is its bitmap's.
fn differencing(sector: u32) -> Layout {
    let chunk = (1usize << 23) * sector as usize / MIB;
    let sectors = MIB / sector as usize;
    // Block 0 has all bytes; block 1 is the parent's; block 2 is zero; block 3 has every third
    // sector, and its first and last 100 ones.
    let mut bitmap = vec![0u8; MIB];
    for n in (0..sectors).filter(|n| n % 3 == 0 || *n < 100 || *n >= sectors - 100) {
        let bit = 3 * sectors + n;
        bitmap[bit / 8] |= 1 << (bit % 8);
    }
    // The first block's bits say nothing.
    bitmap[0] = 0b1010_1010;
    Layout {
        sector,
        size: 5 * MIB as u64,
        flags: 2,
        locator: vec![
            ("relative_path", "..\\base.vhdx".into()),
            ("parent_linkage", format!("{{{}}}", DATA_WRITE.to_string().to_lowercase())),
            ("absolute_win32_path", "C:\\a\u{202e}b".into()),
            ("other", "x".into()),
        ],
        table: vec![(0, 6, 5), (2, 2, 0), (3, 7, 6), (chunk, 6, 4)],
        blocks: [bitmap, vec![1; MIB], vec![2; MIB]].concat(),
        ..Layout::default()
    }
}

/// What the differencing image has over a parent.
fn expected(sector: u32, parent: &[u8]) -> Vec<u8> {
    let sectors = MIB / sector as usize;
    let mut expected = parent[..parent.len().min(5 * MIB)].to_vec();
    expected.resize(5 * MIB, 0);
    expected[..MIB].fill(1);
    expected[2 * MIB..3 * MIB].fill(0);
    for n in (0..sectors).filter(|n| n % 3 == 0 || *n < 100 || *n >= sectors - 100) {
        let at = 3 * MIB + n * sector as usize;
        expected[at..at + sector as usize].fill(2);
    }
    expected
}

#[test]
fn sectors_that_a_differencing_image_lacks_are_the_parents() {
    for sector in [512, 4096] {
        for parent in [sample(5 * MIB, 3), sample(3 * MIB + 700_001, 4), vec![]] {
            let bytes = differencing(sector).image();
            let image = open(source(&bytes), || Ok(Some(source(&parent)))).unwrap();
            let expected = expected(sector, &parent);
            assert!(read_all(&image) == Ok(expected.clone()), "sectors of {sector}");
            for (offset, length) in [(3 * MIB + 51_100, 4000), (3 * MIB - 1, 2), (4 * MIB - 51_300, 60_000)] {
                let mut part = vec![0; length];
                image.read(offset as u64, &mut part).unwrap();
                assert!(part == expected[offset..offset + length], "{length} at {offset}");
            }
            let told = extents(&image);
            for extent in told.iter().filter(|extent| extent.kind.contains(ExtentType::ZERO)) {
                let range = extent.offset as usize..(extent.offset + extent.length) as usize;
                assert!(expected[range].iter().all(|byte| *byte == 0), "{extent:?}");
            }
        }
    }
}

#[test]
fn the_bitmap_of_the_second_chunk_is_found() {
    // Blocks of 256 MiB: a chunk of 16.
    let layout = Layout {
        block: 256 << 20,
        size: 20 << 28,
        flags: 2,
        locator: vec![("parent_linkage", "x".into())],
        table: vec![(17, 7, 5), (33, 6, 4)],
        blocks: [vec![0b10; MIB], vec![3; MIB]].concat(),
        ..Layout::default()
    };
    let mut bytes = layout.image();
    bytes.resize(5 * MIB + (256 << 20), 4);
    let image = open(source(&bytes), || Ok(Some(source(&[8; 100])))).unwrap();
    let mut part = [0; 1536];
    image.read(16 << 28, &mut part).unwrap();
    assert_eq!(part, *[[0; 512], [3; 512], [0; 512]].as_flattened());
}

#[test]
fn a_raw_parent_is_taken_and_a_vhdx_parent_has_to_be_the_one_that_is_named() {
    let child = differencing(512).image();
    let parent = Layout { size: 5 << 20, table: vec![(1, 6, 4)], blocks: vec![9; MIB], ..Layout::default() };
    let over = |child: &[u8], parent: &[u8]| open(source(child), || Ok(Some(source(parent))));
    let raw = [vec![0; MIB], vec![9; MIB], vec![0; 3 * MIB]].concat();
    assert!(read_all(&over(&child, &parent.image()).unwrap()) == Ok(expected(512, &raw)));
    // The identifier may also be the second one.
    let mut locator = differencing(512).locator;
    locator[1].0 = "parent_linkage2";
    locator.push(("parent_linkage", "{2DC27766-F623-4200-9D64-115E9BFD4A08}".into()));
    let second = Layout { locator, ..differencing(512) }.image();
    assert!(over(&second, &parent.image()).is_ok());
    let line = |child: &[u8], parent: &[u8]| over(child, parent).err().expect("the wrong parent").to_string();
    let mut changed = parent.image();
    for at in [64 << 10, 128 << 10] {
        changed[at + 32] = 9;
    }
    seal(&mut changed);
    assert_eq!(
        line(&child, &changed),
        "vhdx-parent= is not the disk that the image was made for, or was changed since: the image names \
         '{dada0001-dada-dada-0000-00000000dada}', and the parent has {DADA0009-DADA-DADA-0000-00000000DADA}"
    );
    assert!(line(&second, &changed).contains("'{dada0001-dada-dada-0000-00000000dada}' or '{2DC27766-"));
    let none = Layout { locator: vec![], ..differencing(512) }.image();
    assert!(line(&none, &changed).contains("the image names no identifier, and the parent has {DADA0009"));
    assert_eq!(
        line(&child, &child),
        "vhdx-parent= is a differencing disk itself: give it as a chain with the filter vhdx and its own parent"
    );
    assert_eq!(
        line(&child, &parent.image()[..64 << 10]),
        "vhdx-parent=: no header is right: the first one ends behind the image, which has 65536 bytes; the second one \
         ends behind the image, which has 65536 bytes"
    );
}

#[test]
fn the_parent_is_never_opened_by_its_name() {
    let bytes = differencing(512).image();
    let line = "the image is a differencing disk and names the parent '..\\\\base.vhdx' and 'C:\\\\a\\u{202e}b': no \
                file is opened by its name, give the parent with vhdx-parent=";
    assert_eq!(refused(&bytes), line);
    let report = report(&bytes);
    assert_eq!(report.dangers, ["it names a parent: '..\\\\base.vhdx'", "it names a parent: 'C:\\\\a\\u{202e}b'"]);
    assert!(report.facts.contains(&("parent id", "'{dada0001-dada-dada-0000-00000000dada}'".into())));
    let nameless = Layout { locator: vec![], ..differencing(512) }.image();
    assert!(refused(&nameless).contains("names the parent no file: no file is opened"), "{}", refused(&nameless));
    open(source(&Layout::default().image()), || panic!("a dynamic disk has no parent")).unwrap();
}

#[test]
fn the_report_has_what_the_tables_say() {
    let report = report(&Layout { flags: 1, ..Layout::default() }.image());
    assert_eq!((report.size, &report.dangers[..]), (Some(4 << 20), &[][..]));
    let facts: Vec<String> = report.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(
        facts,
        [
            "creator: 'a test'",
            "log size: 1048576",
            "log: empty",
            "type: fixed",
            "block size: 1048576",
            "logical sector size: 512",
            "physical sector size: 4096",
            "leaves blocks allocated: yes",
            "disk id: 0000D15C-0001-0002-0000-000000000003",
            "data write id: DADA0001-DADA-DADA-0000-00000000DADA",
        ]
    );
    assert_eq!(BLOCKS, 4 * MIB);
}
