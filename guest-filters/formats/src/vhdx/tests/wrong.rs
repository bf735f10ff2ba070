//! Images that are wrong, each with its line.

use super::*;
use crate::testing::vhdx::{
    BAT, BLOCKS, Change, DATA_WRITE, ITEMS, LOG, LOG_GUID, LOG_SIZE, Layout, LogEntry, METADATA, locator, put,
    put_block, put_log, seal, sign, utf16,
};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;
/// Where the headers and the region tables are.
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const TABLES: [usize; 2] = [192 << 10, 256 << 10];
/// Where the second item of the metadata is: the size of the disk.
const SIZE_ITEM: usize = ITEMS + SECTOR;

/// An image whose first block has ones.
fn image() -> Vec<u8> {
    Layout { table: vec![(0, 6, 4)], blocks: vec![1; MIB], ..Layout::default() }.image()
}

fn differencing() -> Layout {
    let locator = vec![("parent_linkage", "x".into())];
    Layout { flags: 2, locator, table: vec![(0, 7, 5), (4096, 6, 4)], blocks: vec![0; 2 * MIB], ..Layout::default() }
}

/// The image with these bytes in two places, and right checksums.
fn with(mut bytes: Vec<u8>, places: [usize; 2], field: usize, value: &[u8]) -> Vec<u8> {
    for place in places {
        put(&mut bytes, place + field, value);
    }
    seal(&mut bytes);
    bytes
}

fn with_header(field: usize, value: &[u8]) -> Vec<u8> {
    with(image(), HEADERS, field, value)
}

fn with_regions(field: usize, value: &[u8]) -> Vec<u8> {
    with(image(), TABLES, field, value)
}

/// The image with a value in the metadata table or its items.
fn with_metadata(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = image();
    put(&mut bytes, at, value);
    bytes
}

#[test]
fn an_image_that_is_cut_at_any_place_is_refused_or_read_to_there() {
    let bytes = image();
    let size = bytes.len();
    assert_eq!(refused(&[]), "it is not a VHDX image: it does not begin with vhdxfile");
    // Every length near the end of something, and some between.
    let ends = [0, 8, 520, HEADERS[0], HEADERS[1], TABLES[0], TABLES[1], LOG, BAT, METADATA, ITEMS, BLOCKS, size];
    let near = ends.iter().flat_map(|end| end.saturating_sub(3)..end + 4);
    let inside = HEADERS.iter().chain(&TABLES).flat_map(|start| (*start..start + 5000).step_by(131));
    for length in near.chain(inside).chain((0..size).step_by(99_991)).filter(|length| *length < size) {
        let line = refused_or_read(&bytes[..length]);
        report(&bytes[..length]);
        let expected = match length {
            0..8 => "it is not a VHDX image: it does not begin with vhdxfile".into(),
            8..0x11000 => format!(
                "no header is right: the first one ends behind the image, which has {length} bytes; the second one \
                 ends behind the image, which has {length} bytes"
            ),
            0x11000..BAT => format!("the log ends at 2097152, and the image after {length} bytes"),
            BAT..METADATA => format!("the block allocation table ends at 3145728, and the image after {length} bytes"),
            METADATA..BLOCKS => format!("the metadata ends at 4194304, and the image after {length} bytes"),
            _ => format!("block 0 ends at 5242880, and the image after {length} bytes"),
        };
        assert_eq!(line, expected, "{length} bytes");
    }
    // Without a log the region tables are reached.
    let mut bytes = with_header(68, &[0; 4]);
    bytes.truncate(TABLES[1]);
    let line = "no region table is right: the first one ends behind the image, which has 262143 bytes; the second one \
                ends behind the image, which has 262143 bytes";
    assert_eq!(refused(&bytes[..TABLES[1] - 1]), line);
}

/// Why an image is not opened, or its first byte not read.
fn refused_or_read(bytes: &[u8]) -> String {
    match open(source(bytes), || Ok(None)) {
        Err(error) => error.to_string(),
        Ok(image) => image.read(0, &mut [0]).unwrap_err().to_string(),
    }
}

#[test]
fn headers_that_are_wrong_are_refused_with_their_values() {
    let mut torn = image();
    torn[HEADERS[0]] = b'x';
    torn[HEADERS[1] + 4000] ^= 1;
    let line = refused(&torn);
    let begins = "no header is right: the first one does not begin with 'head'; the second one has the checksum 0x";
    assert!(line.starts_with(begins) && line.contains(", and its bytes give 0x"), "{line}");
    let mut same = with(image(), [HEADERS[0]; 2], 8, &8u64.to_le_bytes());
    same[HEADERS[0] + 16] = 1;
    seal(&mut same);
    assert_eq!(refused(&same), "both headers have the sequence number 8, and say different things");
    for version in [0u16, 2, u16::MAX] {
        let line = format!("version {version} of VHDX is not supported: 1 is");
        assert_eq!(refused(&with_header(66, &version.to_le_bytes())), line);
    }
    for length in [1u32, 4096, MIB as u32 - 1, u32::MAX] {
        let line = format!("the log has {length} bytes at 1048576: both must be multiples of 1048576, and not zero");
        assert_eq!(refused(&with_header(68, &length.to_le_bytes())), line);
    }
    for offset in [0, 1, MIB as u64 - 1, MIB as u64 + 4096, u64::MAX] {
        let line = format!("the log has 1048576 bytes at {offset}: both must be multiples of 1048576, and not zero");
        assert_eq!(refused(&with_header(72, &offset.to_le_bytes())), line);
    }
    let largest = u64::MAX - (MIB as u64 - 1);
    for (offset, end) in [(largest, u64::MAX), (5 << 20, 6 << 20), (1 << 60, (1 << 60) + MIB as u64)] {
        let line = format!("the log ends at {end}, and the image after 5242880 bytes");
        assert_eq!(refused(&with_header(72, &offset.to_le_bytes())), line);
    }
    let needed = with(with_header(48, &LOG_GUID.0), HEADERS, 68, &[0; 4]);
    let line = "the log has 0 bytes at 1048576: both must be multiples of 1048576, and not zero";
    assert_eq!(refused(&needed), line);
    let version = with(with_header(48, &LOG_GUID.0), HEADERS, 64, &[1]);
    assert_eq!(refused(&version), "version 1 of the log is not supported: 0 is");
    assert_eq!(report(&version).dangers, ["version 1 of the log is not supported: 0 is"]);
}

#[test]
fn region_tables_that_are_wrong_are_refused_with_their_values() {
    let mut torn = image();
    torn[TABLES[0]] = b'x';
    torn[TABLES[1] + 65535] ^= 1;
    let line = refused(&torn);
    let begins = "no region table is right: the first one does not begin with 'regi'; the second one has the checksum";
    assert!(line.starts_with(begins), "{line}");
    for count in [2048u32, u32::MAX] {
        let line = format!("the region table says {count} regions: it has at most 2047");
        assert_eq!(refused(&with_regions(8, &count.to_le_bytes())), line);
    }
    assert_eq!(refused(&with_regions(8, &[0])), "the region table does not have the block allocation table");
    assert_eq!(refused(&with_regions(8, &[1])), "the region table does not have the metadata");
    let bat = "the block allocation table";
    for (offset, length) in
        [(0u64, 1u32 << 20), (4096, 1 << 20), (u64::MAX, 1 << 20), (2 << 20, 0), (2 << 20, 4096), (2 << 20, u32::MAX)]
    {
        let mut bytes = with_regions(16 + 16, &offset.to_le_bytes());
        bytes = with(bytes, TABLES, 16 + 24, &length.to_le_bytes());
        let line = format!("{bat} has {length} bytes at {offset}: both must be multiples of 1048576, and not zero");
        assert_eq!(refused(&bytes), line);
    }
    for (offset, end) in [(u64::MAX - (MIB as u64 - 1), u64::MAX), (5 << 20, 6 << 20)] {
        let line = format!("{bat} ends at {end}, and the image after 5242880 bytes");
        assert_eq!(refused(&with_regions(16 + 16, &offset.to_le_bytes())), line);
    }
    let over =
        "the block allocation table and the metadata overlap: one ends at 4194304, and the other begins at 3145728";
    assert_eq!(refused(&with_regions(16 + 26, &[0x20])), over);
    let log = "the log and the block allocation table overlap: one ends at 2097152, and the other begins at 1048576";
    assert_eq!(refused(&with_regions(16 + 18, &[0x10])), log);
    let twice = image()[TABLES[0] + 16..TABLES[0] + 32].to_vec();
    assert_eq!(refused(&with_regions(16 + 32, &twice)), "the region table has the block allocation table twice");
    // A region that nobody knows.
    let mut more = [DATA_WRITE.0.to_vec(), vec![0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0]].concat();
    let needs = "the image needs a region that is not known: DADA0001-DADA-DADA-0000-00000000DADA";
    assert_eq!(refused(&with(with_regions(8, &[3]), TABLES, 16 + 64, &more)), needs);
    more[28] = 0;
    assert_eq!(first_byte(&with(with_regions(8, &[3]), TABLES, 16 + 64, &more)), Ok(1));
    more[18] = 0x30;
    let other = "the region DADA0001-DADA-DADA-0000-00000000DADA";
    let line = refused(&with(with_regions(8, &[3]), TABLES, 16 + 64, &more));
    assert_eq!(line, format!("the metadata and {other} overlap: one ends at 4194304, and the other begins at 3145728"));
}

#[test]
fn metadata_tables_that_are_wrong_are_refused_with_their_values() {
    let entry = |n: usize, field: usize| METADATA + 32 + n * 32 + field;
    assert_eq!(refused(&with_metadata(METADATA, b"x")), "the metadata at 3145728 does not begin with 'metadata'");
    for count in [2048u16, 65535] {
        let line = format!("the metadata table says {count} items: it has at most 2047");
        assert_eq!(refused(&with_metadata(METADATA + 10, &count.to_le_bytes())), line);
    }
    // 2047 items of nothing, which nobody needs.
    let mut many = with_metadata(METADATA + 10, &2047u16.to_le_bytes());
    assert_eq!(first_byte(&many), Ok(1));
    for n in 5..2047 {
        put(&mut many, entry(n, 0), &(n as u64).to_le_bytes());
        put(&mut many, entry(n, 16), &[0, 0, 2, 0, 1]);
    }
    let line = refused(&many);
    assert!(line.contains(" overlap: one ends at 131073 of the metadata, and the other begins at 131072"), "{line}");
    let size = "the size of the disk";
    for (offset, length) in [(0u32, 8u32), (65535, 8), (u32::MAX, 8), (65536, u32::MAX), (1 << 20, 8), (1 << 20, 1)] {
        let mut bytes = with_metadata(entry(1, 16), &offset.to_le_bytes());
        put(&mut bytes, entry(1, 20), &length.to_le_bytes());
        let line = format!(
            "{size} has {length} bytes at {offset} of the metadata: items have at most 1048576 bytes and lie from \
             65536 to 1048576"
        );
        assert_eq!(refused(&bytes), line);
    }
    let over = "the file parameters and the size of the disk overlap: one ends at 65544 of the metadata, and the other \
                begins at 65540";
    assert_eq!(refused(&with_metadata(entry(1, 16), &65540u32.to_le_bytes())), over);
    assert_eq!(refused(&with_metadata(entry(1, 20), &[7])), "the size of the disk has 7 bytes: it must have 8");
    assert_eq!(refused(&with_metadata(entry(1, 20), &[0])), "the size of the disk has 0 bytes: it must have 8");
    for (n, name) in [
        (0, "the file parameters"),
        (1, size),
        (2, "the identifier of the disk"),
        (3, "the logical sector size"),
        (4, "the physical sector size"),
    ] {
        // An item of a user is another one.
        let line = format!("the metadata does not have {name}");
        assert_eq!(refused(&with_metadata(entry(n, 24), &[1])), line);
        let mut bytes = image();
        put(&mut bytes, entry(n, 0), &DATA_WRITE.0);
        let line = "the image needs metadata that is not known: DADA0001-DADA-DADA-0000-00000000DADA";
        assert_eq!(refused(&bytes), line);
        put(&mut bytes, entry(n, 24), &[0]);
        assert_eq!(refused(&bytes), format!("the metadata does not have {name}"));
    }
    assert_eq!(
        refused(&with_metadata(entry(1, 24), &[5])),
        "the image needs metadata that is not known: 2FA54224-CD1B-4876-B211-5DBED83BF4B8",
        "a program of the user needs it"
    );
    let mut twice = image();
    let first = twice[entry(0, 0)..entry(0, 16)].to_vec();
    put(&mut twice, entry(1, 0), &first);
    assert_eq!(refused(&twice), "the metadata table has the file parameters twice");
    let mut no_locator = image();
    put(&mut no_locator, ITEMS + 4, &[2]);
    assert_eq!(refused(&no_locator), "a differencing disk must have the parent locator");
}

#[test]
fn sizes_that_are_wrong_are_refused_with_their_values() {
    for block in [0u32, 1, 512 << 10, (1 << 20) + 1, 3 << 20, 512 << 20, u32::MAX] {
        let line =
            format!("the image has blocks of {block} bytes: it must be a power of two from 1048576 to 268435456");
        assert_eq!(refused(&with_metadata(ITEMS, &block.to_le_bytes())), line);
    }
    for sector in [0u32, 1, 513, 1024, 8192, u32::MAX] {
        let line = format!("the logical sector size is {sector} bytes: it must be 512 or 4096");
        assert_eq!(refused(&with_metadata(ITEMS + 3 * SECTOR, &sector.to_le_bytes())), line);
        let line = format!("the physical sector size is {sector} bytes: it must be 512 or 4096");
        assert_eq!(refused(&with_metadata(ITEMS + 4 * SECTOR, &sector.to_le_bytes())), line);
    }
    for size in [1, 511, 513, (64u64 << 40) + 512, 1 << 63, u64::MAX - 511, u64::MAX] {
        let line = format!(
            "the disk has {size} bytes: it must be a multiple of its sectors of 512, and at most 70368744177664"
        );
        assert_eq!(refused(&with_metadata(SIZE_ITEM, &size.to_le_bytes())), line);
    }
    // The table has 1 MiB: 131072 entries, of which every 4097th is a bitmap's.
    let size = (131_072u64 - 31) << 20;
    assert_eq!(first_byte(&with_metadata(SIZE_ITEM, &size.to_le_bytes())), Ok(1));
    for (size, needed) in [(size + 512, 131_073u64), (64 << 40, (64 << 20) + (16 << 10) - 1)] {
        let line =
            format!("the block allocation table has 131072 entries, and the disk of {size} bytes needs {needed}");
        assert_eq!(refused(&with_metadata(SIZE_ITEM, &size.to_le_bytes())), line);
    }
    let of_differencing = Layout { size: 31 << 32, ..differencing() }.image();
    assert!(open(source(&of_differencing), || Ok(Some(source(&[])))).is_ok());
    let more = Layout { size: (31 << 32) + 512, ..differencing() }.image();
    let line = open(source(&more), || Ok(Some(source(&[])))).err().unwrap().to_string();
    let expected = "the block allocation table has 131072 entries, and the disk of 133143986688 bytes needs 131104";
    assert_eq!(line, expected);
    let none = opened(&with_metadata(SIZE_ITEM, &[0; 8]));
    assert_eq!((none.size(), none.read(0, &mut [0]).is_err()), (0, true));
}

#[test]
fn blocks_that_lie_where_they_cannot_are_errors_and_others_are_read() {
    let cases = [
        (0, "block 0 is at 0: the headers are there, from 0 to 1048576".to_string()),
        (1, "block 0 is at 1048576: the log is there, from 1048576 to 2097152".into()),
        (2, "block 0 is at 2097152: the block allocation table is there, from 2097152 to 3145728".into()),
        (3, "block 0 is at 3145728: the metadata is there, from 3145728 to 4194304".into()),
        (5, "block 0 ends at 6291456, and the image after 5242880 bytes".into()),
        (1 << 40, "block 0 ends at 1152921504607895552, and the image after 5242880 bytes".into()),
        ((1 << 44) - 1, format!("block 0 ends at {}, and the image after 5242880 bytes", u64::MAX)),
    ];
    for (mib, line) in cases {
        let mut bytes = image();
        put_block(&mut bytes, 0, 6, mib);
        put_block(&mut bytes, 1, 6, 4);
        assert_eq!(first_byte(&bytes), Err(line));
        let image = opened(&bytes);
        assert!(image.extents(&mut rbdkit_filter_sdk::image::ExtentList::new(0, 512)).is_err());
        let mut block = vec![0; MIB];
        image.read(MIB as u64, &mut block).unwrap();
        assert!(block == vec![1; MIB], "the other blocks are read");
    }
    for (state, kind) in [(4, "dynamic"), (7, "dynamic"), (4, "fixed"), (7, "fixed")] {
        let mut bytes = image();
        put(&mut bytes, ITEMS + 4, &[u8::from(kind == "fixed")]);
        put_block(&mut bytes, 0, state, 4);
        let line = format!("block 0 has the state {state}, which a block of a {kind} disk cannot have");
        assert_eq!(first_byte(&bytes), Err(line));
    }
    // Two blocks in one place are what the table says: both have its bytes.
    let mut twice = image();
    put_block(&mut twice, 3, 6, 4);
    let all = read_all(&opened(&twice)).unwrap();
    assert!(all[..MIB] == all[3 * MIB..] && all[0] == 1);
}

#[test]
fn bitmaps_that_are_missing_or_wrong_are_errors() {
    let over = |bytes: &[u8]| {
        let image = open(source(bytes), || Ok(Some(source(&[9; 600])))).unwrap();
        let mut byte = [0];
        image.read(0, &mut byte).map(|()| byte[0]).map_err(|error| error.to_string())
    };
    let bytes = differencing().image();
    assert_eq!(over(&bytes), Ok(9));
    for state in [0, 1, 2, 3, 4, 5, 7] {
        let mut bytes = bytes.clone();
        put_block(&mut bytes, 4096, state, 4);
        let line = format!("block 0 is partially present, and bitmap 0, which says what is, has the state {state}");
        assert_eq!(over(&bytes), Err(line));
    }
    for (mib, line) in [
        (3, "bitmap 0 is at 3145728: the metadata is there, from 3145728 to 4194304"),
        (6, "bitmap 0 ends at 7340032, and the image after 6291456 bytes"),
        ((1 << 44) - 1, "bitmap 0 ends at 18446744073709551615, and the image after 6291456 bytes"),
    ] {
        let mut bytes = bytes.clone();
        put_block(&mut bytes, 4096, 6, mib);
        assert_eq!(over(&bytes), Err(line.into()));
    }
    // A block that is whole needs no bitmap.
    let mut whole = bytes;
    put_block(&mut whole, 0, 6, 5);
    put_block(&mut whole, 4096, 0, 0);
    assert_eq!(over(&whole), Ok(0));
}

#[test]
fn parent_locators_that_lie_are_refused_with_their_values() {
    let with_locator = |bytes: &[u8]| {
        let mut image = differencing().image();
        let length = (bytes.len() as u32).to_le_bytes();
        put(&mut image, METADATA + 32 + 5 * 32 + 20, &length);
        put(&mut image, ITEMS + 5 * SECTOR, bytes);
        image
    };
    let right = locator(&[("parent_linkage", "x".into())]);
    let needs = "the image is a differencing disk and names the parent no file: no file is opened by its name, give \
                 the parent with vhdx-parent=";
    assert_eq!(refused(&with_locator(&right)), needs);
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = right.clone();
        put(&mut bytes, at, value);
        with_locator(&bytes)
    };
    let kind = "the parent locator has the type DADA0001-DADA-DADA-0000-00000000DADA: \
                B04AEFB7-D19E-4A81-B789-25B8E9445913 is supported";
    assert_eq!(refused(&changed(0, &DATA_WRITE.0)), kind);
    // One entry, and texts of 28 and of 2 bytes: 62 in all.
    assert_eq!(right.len(), 62);
    for (field, length, value) in [(20, 28, 63u32), (20, 28, 35), (20, 28, u32::MAX), (24, 2, 61), (24, 2, 0)] {
        let line = format!("entry 0 of the parent locator has a text of {length} bytes at {value}, and the locator 62");
        assert_eq!(refused(&changed(field, &value.to_le_bytes())), line);
    }
    for (field, at, length) in
        [(28, 32, 0u16), (28, 32, 27), (28, 32, 32), (28, 32, u16::MAX), (30, 60, 1), (30, 60, 4)]
    {
        let line = format!("entry 0 of the parent locator has a text of {length} bytes at {at}, and the locator 62");
        assert_eq!(refused(&changed(field, &length.to_le_bytes())), line);
    }
    assert_eq!(
        refused(&changed(18, &u16::MAX.to_le_bytes())),
        "entry 1 of the parent locator has a text of 110 bytes at 6357104, and the locator 62"
    );
    assert_eq!(refused(&with_locator(&right[..10])), "the parent locator has 10 bytes, and a field at 0 of 16 bytes");
    assert_eq!(refused(&with_locator(&right[..19])), "the parent locator has 19 bytes, and a field at 18 of 2 bytes");
    let twice = locator(&[("parent_linkage", "x".into()), ("parent_linkage", "y".into())]);
    assert_eq!(refused(&with_locator(&twice)), "the parent locator has parent_linkage twice");
    // As many entries as the format has, all with one long key: nothing is kept of them.
    let mut many = right[..18].to_vec();
    many.extend(u16::MAX.to_le_bytes());
    let texts = 20 + 65535 * 12;
    for _ in 0..65535 {
        many.extend((texts as u32).to_le_bytes());
        many.extend((texts as u32).to_le_bytes());
        many.extend([0xfe, 0xff, 0xfe, 0xff]);
    }
    many.extend(utf16(&"a".repeat(32767)));
    let mut image = differencing().image();
    let at = METADATA + 32 + 5 * 32 + 16;
    put(&mut image, at, &((ITEMS - METADATA + 5 * SECTOR) as u32).to_le_bytes());
    put(&mut image, at + 4, &(many.len() as u32).to_le_bytes());
    put(&mut image, ITEMS + 5 * SECTOR, &many);
    assert_eq!(refused(&image), needs);
}

/// An image with a log of one entry with these changes, to which something is done.
fn with_entry(changes: Vec<Change>, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = image();
    let size = bytes.len() as u64;
    let mut entry = LogEntry { sequence: 3, tail: 0, flushed: size, last: size, changes }.bytes();
    change(&mut entry);
    put_log(&mut bytes, 0, &entry);
    bytes
}

/// Writes to an entry and makes its checksum right again.
fn signed(at: usize, value: &[u8]) -> impl Fn(&mut Vec<u8>) {
    move |entry: &mut Vec<u8>| {
        put(entry, at, value);
        sign(entry);
    }
}

fn zero() -> Vec<Change> {
    vec![Change::Zero(BLOCKS as u64, 4096)]
}

fn data() -> Vec<Change> {
    vec![Change::Data(BLOCKS as u64, vec![7; SECTOR])]
}

#[test]
fn a_log_that_is_needed_and_broken_is_refused() {
    assert_eq!(first_byte(&with_entry(zero(), |_| ())), Ok(0));
    assert_eq!(first_byte(&with_entry(data(), |_| ())), Ok(7));
    let none = "the log has to be replayed, and none of its 0 entries ends a sequence";
    let mut empty = image();
    put_log(&mut empty, 0, &[]);
    assert_eq!(refused(&empty), none);
    assert_eq!(report(&empty).dangers, [none]);
    let other_log = with_entry(zero(), signed(32, &[9; 16]));
    assert_eq!(refused(&other_log), none);
    let checksum = refused(&with_entry(zero(), |entry| entry[4000] = 1));
    assert!(checksum.starts_with(&format!("{none}; the one at 0 has the checksum 0x")), "{checksum}");
    for length in [0u32, 1, 4095, LOG_SIZE as u32 + 4096, u32::MAX, u32::MAX - 4095] {
        let line = format!("{none}; the one at 0 says a length of {length} bytes");
        assert_eq!(refused(&with_entry(zero(), signed(8, &length.to_le_bytes()))), line);
    }
    let line = format!("{none}; the one at 0 has the sequence number 0");
    assert_eq!(refused(&with_entry(zero(), signed(16, &[0]))), line);
    for count in [127u32, u32::MAX] {
        let line = format!("{none}; the one at 0 says {count} descriptors in 4096 bytes");
        assert_eq!(refused(&with_entry(zero(), signed(24, &count.to_le_bytes()))), line);
    }
    for tail in [1u32, 4096, LOG_SIZE as u32, u32::MAX] {
        let line = "the log has to be replayed, and none of its 1 entries ends a sequence";
        assert_eq!(refused(&with_entry(zero(), signed(12, &tail.to_le_bytes()))), line);
    }
    let mut large = image();
    large.resize(70 * MIB, 0);
    for header in HEADERS {
        put(&mut large, header + 68, &(65u32 << 20).to_le_bytes());
        put(&mut large, header + 72, &(5u64 << 20).to_le_bytes());
    }
    put_log(&mut large, 0, &[]);
    let line = "the log has to be replayed and has 68157440 bytes: at most 67108864 are supported";
    assert_eq!(refused(&large), line);
}

#[test]
fn entries_of_the_log_that_lie_are_refused_with_their_values() {
    let cases: Vec<(Vec<Change>, usize, Vec<u8>, &str)> = vec![
        (zero(), 64, b"none".to_vec(), "descriptor 0 begins with 'none'"),
        (zero(), 88, vec![4], "descriptor 0 has the number 4, and the entry 3"),
        (zero(), 72, vec![1], "descriptor 0 is about 4097 bytes at 4194304: both must be multiples of 4096"),
        (
            zero(),
            80,
            vec![0xff; 8],
            "descriptor 0 is about 4096 bytes at 18446744073709551615: both must be multiples of 4096",
        ),
        (data(), 80, vec![1], "descriptor 0 is about 4096 bytes at 4194305: both must be multiples of 4096"),
        (data(), SECTOR, b"dato".to_vec(), "the data of descriptor 0 is not a sector of this entry"),
        (data(), SECTOR + 4, vec![1], "the data of descriptor 0 is not a sector of this entry"),
        (data(), 2 * SECTOR - 4, vec![1], "the data of descriptor 0 is not a sector of this entry"),
        (zero(), 64, b"desc".to_vec(), "descriptor 0 has no sector of data in the 4096 bytes"),
        (data(), 64, b"zero".to_vec(), "descriptor 0 is about "),
        (data(), 24, vec![0], "it has 8192 bytes, and its descriptors need 4096"),
    ];
    for (changes, at, value, expected) in cases {
        let line = refused(&with_entry(changes, signed(at, &value)));
        assert!(line.starts_with(&format!("the log's entry at 0: {expected}")), "{line}, not {expected}");
    }
    let size = image().len();
    let cases: [(u64, u64, &str); 8] = [
        (0, 4096, "the headers must not be replaced"),
        (188 << 10, 8192, "the headers must not be replaced"),
        (LOG as u64, 4096, "the log must not be replaced"),
        (768 << 10, 1 << 20, "the log must not be replaced"),
        (0, 1 << 20, "the headers must not be replaced"),
        (size as u64, 4096, ""),
        (u64::MAX - 4095, 4096, ""),
        (BLOCKS as u64, u64::MAX - 4095, ""),
    ];
    for (start, length, why) in cases {
        let line = refused(&with_entry(vec![Change::Zero(start, length)], |_| ()));
        let expected = match why {
            "" => format!("the log's entry at 0 replaces {length} bytes at {start}, and the image has {size}"),
            why => format!("the log's entry at 0 replaces {length} bytes at {start}: {why}"),
        };
        assert_eq!(line, expected);
    }
    assert_eq!(first_byte(&with_entry(vec![Change::Zero(0, 0)], |_| ())), Ok(1), "nothing is replaced");
    let line = "the image had 18446744073709551615 bytes when the log was written, and has 5242880: it was cut";
    assert_eq!(refused(&with_entry(zero(), signed(48, &[0xff; 8]))), line);
    let line = "the log says that the image has 18446744073709551615 bytes";
    assert_eq!(refused(&with_entry(zero(), signed(56, &[0xff; 8]))), line);
    let far = with_entry(vec![Change::Zero(1 << 62, 1 << 62)], signed(56, &(i64::MAX as u64).to_le_bytes()));
    let line = "the log's entry at 0 replaces 4611686018427387904 bytes at 4611686018427387904, and the image has \
                9223372036854775807";
    assert_eq!(refused(&far), line);
}

#[test]
fn two_sequences_with_one_number_are_refused() {
    let mut bytes = with_entry(zero(), |_| ());
    let size = bytes.len() as u64;
    let at = 80 * SECTOR;
    let entry = LogEntry { sequence: 3, tail: at as u32, flushed: size, last: size, changes: data() };
    put_log(&mut bytes, at, &entry.bytes());
    assert_eq!(refused(&bytes), "the log has two sequences that end with the number 3");
}

#[test]
fn the_largest_sequence_number_ends_its_sequence() {
    let mut bytes = image();
    let size = bytes.len() as u64;
    let entry = |sequence, tail, changes| LogEntry { sequence, tail, flushed: size, last: size, changes };
    let at = put_log(&mut bytes, 0, &entry(u64::MAX, 0, data()).bytes());
    put_log(&mut bytes, at, &entry(1, at as u32, zero()).bytes());
    assert_eq!(first_byte(&bytes), Ok(7));
}

#[test]
fn a_log_of_entries_that_lie_over_each_other_takes_no_time() {
    // Each sector says that it is an entry as long as the log: each is looked at as a whole.
    let mut bytes = image();
    for sector in 0..LOG_SIZE / SECTOR {
        let at = LOG + sector * SECTOR;
        put(&mut bytes, at, b"loge");
        put(&mut bytes, at + 8, &(LOG_SIZE as u32).to_le_bytes());
        put(&mut bytes, at + 16, &[1]);
        put(&mut bytes, at + 32, &LOG_GUID.0);
    }
    put_log(&mut bytes, 0, &[]);
    assert_eq!(refused(&bytes), "the log has to be replayed, and its entries lie over each other");
}

#[test]
fn a_log_with_more_ranges_than_are_kept_is_refused() {
    // Three entries of 32 766 descriptors: ranges of zeroes with one sector between each two.
    let mut bytes = image();
    for header in HEADERS {
        put(&mut bytes, header + 68, &(4u32 << 20).to_le_bytes());
        put(&mut bytes, header + 72, &(5u64 << 20).to_le_bytes());
    }
    bytes.resize(9 * MIB, 0);
    let mut at = 0;
    for n in 0..3u64 {
        let zeroes = (0..32_766).map(|zero| Change::Zero((16 << 20) + (n * 32_766 + zero) * 8192, 4096));
        let changes = zeroes.collect();
        let entry = LogEntry { sequence: 1 + n, tail: 0, flushed: 0, last: 1 << 40, changes }.bytes();
        put(&mut bytes, 5 * MIB + at, &entry);
        at += entry.len();
        for header in HEADERS {
            put(&mut bytes, header + 48, &LOG_GUID.0);
        }
        seal(&mut bytes);
        match n {
            2 => assert_eq!(refused(&bytes), "the log replaces more than 65536 ranges of the image"),
            _ => assert_eq!(first_byte(&bytes), Ok(1)),
        }
    }
}
