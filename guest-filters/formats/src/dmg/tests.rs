//! Images of the tests' writer, and of what hostile ones say.

use super::*;
use crate::testing::dmg::{
    ADC, BZIP2, DmgLayout, Entry, LZFSE, RAW, TERMINATOR, TablesIn, XZ, ZERO, ZLIB, fork, image, list, made, packed,
    table,
};
use crate::testing::{Dir, read_all, run, sample, source};
use rbdkit_filter_sdk::ExtentType;
use rbdkit_filter_sdk::image::ExtentList;

/// A disk with chunks of zeroes, whose last chunk is not whole.
fn content() -> Vec<u8> {
    let mut content = sample(777 * 512, 1);
    content[64 * 512 * 2..64 * 512 * 5].fill(0);
    content[64 * 512 * 9..64 * 512 * 10].fill(0);
    content
}

fn layouts() -> Vec<DmgLayout> {
    let all = [RAW, ADC, ZLIB, BZIP2, LZFSE, XZ];
    let mut layouts: Vec<DmgLayout> = all.iter().map(|kind| DmgLayout::new(&[*kind])).collect();
    layouts.push(DmgLayout { tables_in: TablesIn::Fork, ..DmgLayout::new(&all) });
    layouts.push(DmgLayout { before: 4097, tables: 5, ..DmgLayout::new(&all) });
    layouts.push(DmgLayout { running: 12345, tables: 1, chunk: 512, ..DmgLayout::new(&all) });
    layouts.push(DmgLayout { chunk: 7, ..DmgLayout::new(&[ZLIB, RAW, ADC]) });
    layouts
}

#[test]
fn images_of_all_types_are_what_they_were_made_of() {
    let content = content();
    for layout in layouts() {
        let image = Dmg::open(source(&made(&content, &layout))).unwrap();
        assert!(read_all(&image) == Ok(content.clone()), "{layout:?}");
        assert_eq!(image.description().as_deref(), Some("DMG image, a partition"));
        // A request that begins and ends within chunks.
        for (offset, length) in [(64 * 512 - 1, 2), (63 * 512 + 100, 130 * 512), (777 * 512 - 700, 700)] {
            let mut bytes = vec![1; length];
            image.read(offset, &mut bytes).unwrap();
            assert!(bytes == content[offset as usize..][..length], "{layout:?}: {length} bytes at {offset}");
        }
        let mut extents = ExtentList::new(0, image.size());
        image.extents(&mut extents).unwrap();
        let holes = extents.into_answer().unwrap();
        for hole in holes.iter().filter(|extent| extent.kind == ExtentType::HOLE | ExtentType::ZERO) {
            assert!(content[hole.offset as usize..][..hole.length as usize].iter().all(|byte| *byte == 0));
        }
        assert!(layout.chunk > 64 || holes.len() >= 3, "{layout:?}: {holes:?}");
    }
}

/// qemu reads no ADC and no xz, and Debian builds it without bzip2 and lzfse.
#[test]
fn qemu_and_dmg2img_read_the_same() {
    let content = content();
    let fork = TablesIn::Fork;
    for (layout, qemu, dmg2img) in [
        (DmgLayout::new(&[ZLIB, RAW]), true, true),
        (DmgLayout { running: 777, chunk: 100, tables: 3, ..DmgLayout::new(&[ZLIB]) }, true, true),
        (DmgLayout { tables_in: fork, ..DmgLayout::new(&[ZLIB, RAW]) }, true, false),
        (DmgLayout { before: 4096, ..DmgLayout::new(&[ZLIB, RAW]) }, true, false),
        (DmgLayout::new(&[BZIP2]), false, true),
        (DmgLayout::new(&[ADC]), false, true),
        (DmgLayout { tables: 4, ..DmgLayout::new(&[ADC, BZIP2, ZLIB, RAW]) }, false, true),
    ] {
        let dir = Dir::new("dmg");
        let bytes = made(&content, &layout);
        assert!(read_all(&*Dmg::open(source(&bytes)).map(opened).unwrap()) == Ok(content.clone()), "{layout:?}");
        let (file, raw) = (dir.file("disk.dmg", &bytes), dir.path("raw"));
        if qemu {
            run("qemu-img", &["convert", "-f", "dmg", "-O", "raw", &file, &raw]);
            assert!(std::fs::read(&raw).unwrap() == content, "qemu: {layout:?}");
        }
        if dmg2img {
            run("dmg2img", &["-s", &file, &raw]);
            assert!(std::fs::read(&raw).unwrap() == content, "dmg2img: {layout:?}");
        }
    }
}

fn opened(image: Dmg) -> Rc<dyn Source> {
    Rc::new(image)
}

fn refused(bytes: &[u8]) -> String {
    Dmg::open(source(bytes)).err().expect("an image that is wrong").to_string()
}

/// An image of these chunks with 4096 bytes of data and one table of 100 sectors.
fn of(entries: &[Entry]) -> Vec<u8> {
    image(&[7; 4096], 100, &[table(0, 100, 0, entries)], &DmgLayout::new(&[RAW]))
}

fn entry(kind: u32, first: u64, sectors: u64, offset: u64, length: u64) -> Entry {
    Entry { kind, first, sectors, offset, length }
}

/// Changes a field of the trailer.
fn trailer_with(bytes: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.len() - 512 + at;
    bytes[at..at + number.len()].copy_from_slice(number);
    bytes
}

#[test]
fn a_trailer_that_is_wrong_is_refused_with_its_value() {
    let bytes = of(&[entry(RAW, 0, 8, 0, 4096)]);
    let whole = bytes.len();
    let list = u64::from_be_bytes(bytes[whole - 296..whole - 288].try_into().unwrap());
    assert!(Dmg::open(source(&bytes)).is_ok());
    let no_image = "it is not a DMG image: no trailer with the signature koly is at its end";
    for cut in [0, 1, 7, 8, 511, 512, whole - 512, whole - 511, whole - 1] {
        assert_eq!(refused(&bytes[..cut]), no_image, "cut at {cut}");
    }
    let long = |number: u64| number.to_be_bytes();
    let at = whole as u64 - 512;
    let huge = format!("of {} bytes is at 0, and the image ends after {whole} bytes", u64::MAX);
    let cases: Vec<(usize, Vec<u8>, String)> = vec![
        (4, vec![0, 0, 0, 5], "version 5 of DMG is not supported: 4 is".into()),
        (8, vec![0xff; 4], "the trailer says that it has 4294967295 bytes: 512 is the size".into()),
        (
            60,
            vec![0, 0, 0, 2],
            "the image is part 1 of 2, and images in several files are not supported: convert it into one file".into(),
        ),
        (492, vec![0; 8], "the disk has 0 sectors: 1 to 18014398509481983 are possible".into()),
        (492, vec![0xff; 8], format!("the disk has {} sectors: 1 to 18014398509481983 are possible", u64::MAX)),
        (
            492,
            long(1 << 54).into(),
            format!("the disk has {} sectors: 1 to 18014398509481983 are possible", 1u64 << 54),
        ),
        (492, long(99).into(), "table 1 has 100 sectors from sector 0 on, and the disk has 99".into()),
        (32, vec![0xff; 8], format!("the data {huge}")),
        (
            24,
            vec![0xff; 8],
            format!("the data of 4096 bytes is at {}, and the image ends after {whole} bytes", u64::MAX),
        ),
        (32, long(at + 1).into(), format!("the data ends at {}, and the trailer is at {at}", at + 1)),
        (
            216,
            vec![0xff; 8],
            format!(
                "the property list of {} bytes is at {}, and the image ends after {whole} bytes",
                at - list,
                u64::MAX
            ),
        ),
        (216, long(list + 1).into(), format!("the property list ends at {}, and the trailer is at {at}", at + 1)),
        (
            224,
            vec![0xff; 8],
            format!("the property list of {} bytes is at {list}, and the image ends after {whole} bytes", u64::MAX),
        ),
        (48, vec![0xff; 8], format!("the resource fork {huge}")),
        (224, vec![0; 8], "the image has neither a property list nor a resource fork: it has no tables".into()),
        (224, long(100).into(), "the property list ends within a tag".into()),
        (224, long(at - list - 10).into(), "the property list ends within an element".into()),
        (
            32,
            long(4095).into(),
            "table 1 is wrong: chunk 0 has 4096 bytes at 0 of the data from 0 on, and the data from \
            byte 0 on has 4095"
                .into(),
        ),
        (32, long(0).into(), String::new()),
        (32, long(at).into(), String::new()),
    ];
    for (field, value, line) in cases {
        let changed = trailer_with(&bytes, field, &value);
        match &line[..] {
            "" => assert!(Dmg::open(source(&changed)).is_ok(), "{field} {value:?}"),
            line => assert_eq!(refused(&changed), line, "{field} {value:?}"),
        }
    }
    let encrypted = [b"encrcdsa".as_slice(), &bytes].concat();
    let line = "the image is encrypted (version 2 of Apple's format), which is not supported: decrypt it first";
    assert_eq!(refused(&encrypted), line);
    let encrypted = [&bytes, b"cdsaencr".as_slice()].concat();
    assert_eq!(refused(&encrypted), line.replace('2', "1"));
    assert_eq!(refused(b"cdsaencr"), line.replace('2', "1"));
}

#[test]
fn a_chunk_that_is_wrong_is_refused_with_its_value() {
    let most = u64::MAX;
    let end = 1 << 63;
    let cases = [
        (vec![entry(0x8000_0009, 0, 1, 0, 9)], "has the type 0x80000009, which is not supported"),
        (vec![entry(3, 0, 1, 0, 9)], "has the type 0x3, which is not supported"),
        (vec![entry(ZERO, 0, most, 0, 0)], "has 18446744073709551615 sectors from sector 0 on, and the table has 100"),
        (vec![entry(ZERO, most, 2, 0, 0)], "has 2 sectors from sector 18446744073709551615 on, and the table has 100"),
        (vec![entry(ZERO, 100, 1, 0, 0)], "has 1 sectors from sector 100 on, and the table has 100"),
        (vec![entry(RAW, 0, 8, 0, most)], "has 18446744073709551615 bytes of raw data for 8 sectors"),
        (vec![entry(RAW, 0, 8, 0, 4095)], "has 4095 bytes of raw data for 8 sectors"),
        (
            vec![entry(RAW, 0, 8, most, 4096)],
            "has 4096 bytes at 18446744073709551615 of the data from 0 on, and the data from byte 0 on has 4096",
        ),
        (
            vec![entry(RAW, 0, 8, end, 4096)],
            "has 4096 bytes at 9223372036854775808 of the data from 0 on, and the data from byte 0 on has 4096",
        ),
        (
            vec![entry(RAW, 0, 8, 1, 4096)],
            "has 4096 bytes at 1 of the data from 0 on, and the data from byte 0 on has 4096",
        ),
        (
            vec![entry(ZLIB, 0, 1, 4000, 97)],
            "has 97 bytes at 4000 of the data from 0 on, and the data from byte 0 on has 4096",
        ),
        (vec![entry(ZLIB, 0, 1, 0, 0)], "has 0 bytes of compressed data for 1 sectors: 1 to 4672 are possible"),
        (
            vec![entry(BZIP2, 0, 1, 0, most)],
            "has 18446744073709551615 bytes of compressed data for 1 sectors: 1 to 4672 are possible",
        ),
        (vec![entry(TERMINATOR, 0, 0, 0, 0), entry(ZERO, 0, 1, 0, 0)], "follows the terminator"),
        (
            vec![entry(ZERO, 5, 5, 0, 0), entry(ZERO, 9, 1, 0, 0)],
            "begins at sector 9, and the one before it ends at 10",
        ),
        (
            vec![entry(RAW, 5, 1, 0, 512), entry(RAW, 4, 1, 0, 512)],
            "begins at sector 4, and the one before it ends at 6",
        ),
    ];
    for (entries, line) in cases {
        let number = entries.len() - 1;
        assert_eq!(refused(&of(&entries)), format!("table 1 is wrong: chunk {number} {line}"));
    }
    let large = |entry| {
        let sectors = 1 << 40;
        image(&[7; 4096], sectors, &[table(0, sectors, 0, &[entry])], &DmgLayout::new(&[RAW]))
    };
    let line = "table 1 is wrong: chunk 0 is compressed and has 16385 sectors: at most 16384 are supported";
    assert_eq!(refused(&large(entry(XZ, 0, (16 << 10) + 1, 0, 9))), line);
    let line = "table 1 is wrong: chunk 0 has 4294967296 sectors of raw data: at most 4294967295 are supported";
    assert_eq!(refused(&large(entry(RAW, 0, 1 << 32, 0, 1 << 41))), line);
    let zeroes = Dmg::open(source(&large(entry(ZERO, 0, 1 << 40, 0, 0)))).unwrap();
    assert_eq!(zeroes.size(), 1 << 49);
    // The data is as long as it says, and the list is there.
    let bytes = of(&[entry(RAW, 0, 8, 1, 4096)]);
    let (start, end) = (4096, bytes.len() - 512);
    let line = format!("has its data at 1, and the property list is there, from {start} to {end}");
    let bytes = trailer_with(&bytes, 32, &5000_u64.to_be_bytes());
    assert_eq!(refused(&bytes), format!("table 1 is wrong: chunk 0 {line}"));
}

#[test]
fn a_table_that_is_wrong_is_refused_with_its_number() {
    let good = table(0, 100, 0, &[entry(RAW, 0, 8, 0, 4096), entry(TERMINATOR, 8, 0, 0, 0)]);
    let with = |at: usize, bytes: &[u8]| {
        let mut table = good.clone();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        vec![table]
    };
    let counted = "chunks: at most 1048576 are supported in all tables together";
    let cases = [
        (vec![Vec::new()], "table 1 has 0 bytes: a table begins with 204".to_string()),
        (vec![good.clone(), good[..203].to_vec()], "table 2 has 203 bytes: a table begins with 204".into()),
        (vec![good[..204].to_vec()], "table 1 says 2 chunks, and ends after 0".into()),
        (vec![good[..283].to_vec()], "table 1 says 2 chunks, and ends after 1".into()),
        (with(200, &[0, 0, 0, 1]), "table 1 says 1 chunks, and has more".into()),
        (with(200, &[0, 0, 0, 0]), "table 1 says 0 chunks, and has more".into()),
        (with(200, &[0xff; 4]), format!("table 1 says 4294967295 {counted}")),
        (with(200, &[0, 0x10, 0, 1]), format!("table 1 says 1048577 {counted}")),
        (with(200, &[0, 0x10, 0, 0]), "table 1 says 1048576 chunks, and ends after 2".into()),
        (with(0, b"MISH"), "table 1 does not begin with the signature mish".into()),
        (with(4, &[0xff; 4]), "table 1 has the version 4294967295, which is not supported: 1 is".into()),
        (with(8, &[0xff; 8]), format!("table 1 has 100 sectors from sector {} on, and the disk has 100", u64::MAX)),
        (with(16, &[0xff; 8]), format!("table 1 has {} sectors from sector 0 on, and the disk has 100", u64::MAX)),
        (
            with(24, &[0xff; 8]),
            format!(
                "table 1 is wrong: chunk 0 has 4096 bytes at 0 of the data from {} on, and the data from byte 0 on \
                 has 4096",
                u64::MAX
            ),
        ),
        (
            vec![table(50, 50, 0, &[]), table(0, 51, 0, &[])],
            "a table begins at sector 50 of the disk, and another one ends at 51".into(),
        ),
        (vec![table(0, 0, 0, &[]); 4097], "the image has more than 4096 tables".into()),
    ];
    for (tables, line) in cases {
        for tables_in in [TablesIn::List, TablesIn::Fork] {
            let layout = DmgLayout { tables_in, ..DmgLayout::new(&[RAW]) };
            assert_eq!(refused(&image(&[7; 4096], 100, &tables, &layout)), line, "{tables_in:?}");
        }
    }
    // Tables in another order than their parts of the disk, and a part that no table has.
    let tables = [table(50, 50, 0, &[entry(RAW, 1, 1, 512, 512)]), table(0, 40, 0, &[entry(RAW, 0, 1, 0, 512)])];
    let image = Dmg::open(source(&image(&[7; 4096], 100, &tables, &DmgLayout::new(&[RAW])))).unwrap();
    let mut expected = vec![0; 51200];
    expected[..512].fill(7);
    expected[51 * 512..52 * 512].fill(7);
    assert!(read_all(&image) == Ok(expected));
}

#[test]
fn an_image_has_at_most_half_a_million_chunks_with_data() {
    let entries: Vec<Entry> = (0..(1 << 19) + 1).map(|first| entry(RAW, first, 1, 0, 512)).collect();
    let sectors = 1 << 30;
    let of = |entries: &[Entry]| image(&[7; 4096], sectors, &[table(0, sectors, 0, entries)], &DmgLayout::new(&[RAW]));
    let line = "the image has more than 524288 chunks with data";
    assert_eq!(refused(&of(&entries)), line);
    let image = Dmg::open(source(&of(&entries[1..]))).unwrap();
    assert_eq!(image.0.index.chunks.capacity() * size_of::<Chunk>(), 12 << 20);
    let mut bytes = [1; 3];
    image.read(511, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 7, 7]);
}

/// An image whose list is this text.
fn listed(text: &[u8]) -> Vec<u8> {
    let mut image = of(&[]);
    let trailer = image.split_off(image.len() - 512);
    let bytes = [&[7; 4096], text, &trailer].concat();
    trailer_with(&bytes, 224, &(text.len() as u64).to_be_bytes())
}

#[test]
fn a_list_that_is_wrong_is_refused_with_a_line() {
    let good = list(&[table(0, 100, 0, &[entry(RAW, 0, 8, 0, 4096)])]);
    assert!(Dmg::open(source(&listed(&good))).is_ok());
    let text = String::from_utf8(good).unwrap();
    let encoded = text.find("bWlza").expect("the table");
    let changed = |from: &str, to: &str| text.replacen(from, to, 1);
    let list = |line: &str| format!("the property list {line}");
    let cases = [
        (changed("bWlza", "bWl*a"), "table 1 is not in base64".to_string()),
        (changed("bWlza", "=Wlza"), "table 1 is not in base64".into()),
        (changed("bWlza", "Wlza"), "table 1 is not in base64".into()),
        (changed("bWlza", "&amp;a"), "table 1 is not in base64".into()),
        (changed("\n\t\t\t\t</data>", "====</data>"), "table 1 is not in base64".into()),
        (changed("bWlza", "bWlzb"), "table 1 does not begin with the signature mish".into()),
        (text[..encoded].into(), list("ends within an element")),
        (text[..encoded + 40].into(), list("ends within an element")),
        (changed("blkx", "blky"), "the image has no table of chunks".into()),
        (changed("</array>", "</dict>"), list("closes the element 'dict', which is not open there")),
        ("</plist>".into(), list("closes the element 'plist', which is not open there")),
        (text.clone() + "<plist>", list("has the element 'plist' where none can be")),
        (text.clone() + "more", list("has the text 'more' between elements")),
        (changed("<array>", "<array>x"), list("has the text 'x' between elements")),
        (changed("bWlza", "<string/>bWlza"), list("has the element 'string' where none can be")),
        (
            "<!DOCTYPE plist [<!ENTITY a 'b'>]>".into(),
            list(r"has the tag '!DOCTYPE plist [<!ENTITY a \'b\'', which is not supported"),
        ),
        (changed("blkx", "<![CDATA[blkx]]>"), list("has the tag '![CDATA[blkx]]', which is not supported")),
        (changed("<array>", "<>"), list("has the tag '', which is not supported")),
        ("<array>".repeat(1 << 20), list("nests more than 16 elements")),
        (format!("<{}", "a".repeat(1 << 20)), list("has a tag of more than 1024 bytes")),
        (format!("<!--{}", "-".repeat(1 << 20)), list("ends within a tag")),
        ("<".into(), list("ends within a tag")),
        (" ".repeat(1 << 20), list("ends within an element")),
        ("\0".repeat(100), list(&format!("has the text '{}' between elements", "\\0".repeat(100)))),
        (" ".repeat((64 << 20) + 1), list("has 67108865 bytes: at most 67108864 are supported")),
        (changed("<dict>", &format!("<!-- {} --><dict>", "-> <a> ".repeat(9999))), String::new()),
        (changed("<dict>", "<!----><true/><date a='b' />\n<dict >"), String::new()),
        (changed("<key>blkx", &format!("<key>{}</key><key>blkx", "k".repeat(1 << 20))), String::new()),
    ];
    for (text, line) in cases {
        let bytes = listed(text.as_bytes());
        let shown = &text[..text.len().min(99)];
        match &line[..] {
            "" => assert!(Dmg::open(source(&bytes)).is_ok(), "{shown}: {}", refused(&bytes)),
            line => assert_eq!(refused(&bytes), line, "{shown}"),
        }
    }
}

#[test]
fn a_fork_that_is_wrong_is_refused_with_a_line() {
    let layout = DmgLayout { tables_in: TablesIn::Fork, ..DmgLayout::new(&[RAW]) };
    let tables = [table(0, 100, 0, &[entry(RAW, 0, 8, 0, 4096)])];
    let bytes = image(&[7; 4096], 100, &tables, &layout);
    let length = fork(&tables).len();
    let map = 256 + 12 + 4 + tables[0].len();
    let line = |what: &str| format!("{what}, and the fork has {length}");
    let most = [0xff; 4];
    let cases = [
        (
            0,
            most.to_vec(),
            line(&format!("the length of a table of the resource fork has 4 bytes at {}", 0xffff_ffff_u64 + 12)),
        ),
        (4, most.to_vec(), line("the map of the resource fork has 30 bytes at 4294967295")),
        (256 + 12, most.to_vec(), line("a table of the resource fork has 4294967295 bytes at 272")),
        (
            map + 24,
            vec![0xff; 2],
            line(&format!("the list of types of the resource fork has 2 bytes at {}", map + 0xffff)),
        ),
        (map + 28, vec![0xff; 2], "the image has no table of chunks".into()),
        (map + 28, vec![0xff, 0xfe], line(&format!("a type of the resource fork has 8 bytes at {}", map + 70))),
        (
            map + 44,
            vec![0xff; 2],
            line(&format!("a resource's place of the resource fork has 12 bytes at {}", map + 28 + 0xffff)),
        ),
    ];
    for (at, value, line) in cases {
        let mut bytes = bytes.clone();
        bytes[4096 + at..][..value.len()].copy_from_slice(&value);
        assert_eq!(refused(&bytes), line, "{at} {value:x?}");
    }
}

#[test]
fn a_chunk_that_gives_more_or_less_than_it_says_fails_the_read() {
    for kind in [ADC, ZLIB, BZIP2, LZFSE, XZ] {
        for (length, line) in
            [(4608, "gives more than its 4096 bytes"), (2048, "gives 2048 bytes, and 4096 are needed")]
        {
            let data = packed(kind, &vec![5; length]);
            let entry = entry(kind, 8, 8, 0, data.len() as u64);
            let bytes = image(&data, 100, &[table(0, 100, 0, &[entry])], &DmgLayout::new(&[RAW]));
            let image = Dmg::open(source(&bytes)).unwrap();
            let expected = format!("the chunk for byte 4096 of the disk, stored at 0, {line}");
            assert_eq!(image.read(5000, &mut [0]), Err(Error::Image(expected)), "{kind:#x}");
            assert_eq!(image.read(0, &mut [0; 4096]), Ok(()), "what is before it can be read");
        }
        // 16 MiB from a few bytes. ADC has at most 67 bytes from 3.
        let data = packed(kind, &vec![5; if kind == ADC { 1 << 20 } else { 16 << 20 }]);
        let entry = entry(kind, 0, 4096, 0, data.len() as u64);
        let bytes = image(&data, 4096, &[table(0, 4096, 0, &[entry])], &DmgLayout::new(&[RAW]));
        let read = Dmg::open(source(&bytes)).unwrap().read(0, &mut [0]);
        if kind == ADC {
            assert!(read.unwrap_err().to_string().ends_with("gives 1048576 bytes, and 2097152 are needed"));
        } else {
            assert!(read.unwrap_err().to_string().ends_with("gives more than its 2097152 bytes"), "{kind:#x}");
        }
    }
    let zlib = packed(ZLIB, &[5; 4096]);
    let mut wrong = zlib.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let entry = entry(ZLIB, 0, 8, 0, zlib.len() as u64);
    let bytes = image(&wrong, 8, &[table(0, 8, 0, &[entry])], &DmgLayout::new(&[RAW]));
    let line = format!(
        "the chunk for byte 0 of the disk, stored at 0, cannot be unpacked: deflated data of {} bytes is wrong after \
         4096 bytes",
        zlib.len()
    );
    assert_eq!(Dmg::open(source(&bytes)).unwrap().read(0, &mut [0]), Err(Error::Image(line)), "the checksum");
}

#[test]
fn the_report_has_what_the_trailer_says_and_its_dangers() {
    let bytes = made(&content(), &DmgLayout { running: 5, ..DmgLayout::new(&[ZLIB]) });
    let report = (INFO.report)(&source(&bytes)).unwrap();
    assert_eq!(report.size, Some(777 * 512));
    assert!(report.facts.contains(&("kind", "a partition".into())), "{report:?}");
    assert!(report.facts.contains(&("checksum of the data", "CRC-32, not verified".into())), "{report:?}");
    assert_eq!(report.dangers, ["its data follows 5 bytes of other parts, and it is the only part"]);
    let both = trailer_with(&trailer_with(&bytes, 48, &[0, 0, 0, 0, 0, 0, 0, 9]), 16, &[0; 8]);
    let report = (INFO.report)(&source(&both)).unwrap();
    assert!(report.dangers[0].starts_with("it has a property list and a resource fork"), "{report:?}");
    let report = (INFO.report)(&source(b"encrcdsa")).unwrap();
    assert!(report.dangers[0].starts_with("it cannot be read: the image is encrypted"), "{report:?}");
    assert_eq!((INFO.probe)(&b"encrcdsa".to_vec()), Ok(true));
    assert_eq!((INFO.probe)(&vec![0; 600]), Ok(false));
}
