//! Writes disk images of Apple (DMG), for tests. No tool for Linux does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::piped;
use crate::checksum::crc32;

/// The types of chunks.
pub const ZERO: u32 = 0;
/// Stored as it is.
pub const RAW: u32 = 1;
/// Not there, and read as zero.
pub const IGNORE: u32 = 2;
/// Compressed in ADC.
pub const ADC: u32 = 0x8000_0004;
/// Compressed by zlib.
pub const ZLIB: u32 = 0x8000_0005;
/// Compressed by bzip2.
pub const BZIP2: u32 = 0x8000_0006;
/// Compressed by lzfse.
pub const LZFSE: u32 = 0x8000_0007;
/// A stream of xz.
pub const XZ: u32 = 0x8000_0008;
/// A comment.
pub const COMMENT: u32 = 0x7fff_fffe;
/// The end of a table.
pub const TERMINATOR: u32 = 0xffff_ffff;

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablesIn {
    /// In a property list.
    List,
    /// In a resource fork.
    Fork,
}

/// How an image is made.
#[derive(Clone, Debug)]
pub struct DmgLayout {
    /// The types of chunks that have data, in turn.
    pub kinds: Vec<u32>,
    /// Sectors of a chunk.
    pub chunk: usize,
    /// How many tables there are, each with an equal part of the disk.
    pub tables: usize,
    /// Bytes before the data.
    pub before: usize,
    /// What the trailer says of the parts before this one.
    pub running: u64,
    /// Where the tables are.
    pub tables_in: TablesIn,
}

impl DmgLayout {
    /// Chunks of these types, of 64 sectors each, in two tables of a property list.
    pub fn new(kinds: &[u32]) -> DmgLayout {
        let kinds = kinds.to_vec();
        DmgLayout { kinds, chunk: 64, tables: 2, before: 0, running: 0, tables_in: TablesIn::List }
    }
}

/// A chunk in a table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its type.
    pub kind: u32,
    /// Its first sector in the table.
    pub first: u64,
    /// How many sectors it has.
    pub sectors: u64,
    /// Where its data is in the data fork.
    pub offset: u64,
    /// How many bytes it takes there.
    pub length: u64,
}

/// A table of the sectors from `first` on.
pub fn table(first: u64, sectors: u64, checksum: u32, entries: &[Entry]) -> Vec<u8> {
    let mut table = vec![0; 204];
    table[..4].copy_from_slice(b"mish");
    table[7] = 1;
    table[8..16].copy_from_slice(&first.to_be_bytes());
    table[16..24].copy_from_slice(&sectors.to_be_bytes());
    // Sectors of the largest buffer that is needed, and the number of this table.
    table[32..36].copy_from_slice(&0x208_u32.to_be_bytes());
    (table[67], table[71]) = (2, 32);
    table[72..76].copy_from_slice(&checksum.to_be_bytes());
    table[200..].copy_from_slice(&(entries.len() as u32).to_be_bytes());
    for entry in entries {
        table.extend(entry.kind.to_be_bytes());
        table.extend([0; 4]);
        for number in [entry.first, entry.sectors, entry.offset, entry.length] {
            table.extend(number.to_be_bytes());
        }
    }
    table
}

/// The property list of these tables, laid out as macOS does.
pub fn list(tables: &[Vec<u8>]) -> Vec<u8> {
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist \
         version=\"1.0\">\n<dict>\n\t<key>resource-fork</key>\n\t<dict>\n\t\t<key>blkx</key>\n\t\t<array>\n",
    );
    for (number, table) in tables.iter().enumerate() {
        text +=
            "\t\t\t<dict>\n\t\t\t\t<key>Attributes</key>\n\t\t\t\t<string>0x0050</string>\n\t\t\t\t<key>Data</key>\n";
        text += "\t\t\t\t<data>\n";
        for line in STANDARD.encode(table).as_bytes().chunks(52) {
            text += &format!("\t\t\t\t{}\n", String::from_utf8_lossy(line));
        }
        text += &format!("\t\t\t\t</data>\n\t\t\t\t<key>ID</key>\n\t\t\t\t<string>{number}</string>\n");
        text += &format!("\t\t\t\t<key>Name</key>\n\t\t\t\t<string>part {number} &amp; more</string>\n\t\t\t</dict>\n");
    }
    text += "\t\t</array>\n\t\t<key>plst</key>\n\t\t<array>\n\t\t\t<dict>\n\t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n\
             \t\t\t\tAAAAAAAA\n\t\t\t\t</data>\n\t\t\t</dict>\n\t\t</array>\n\t</dict>\n</dict>\n</plist>\n";
    text.into_bytes()
}

/// A resource fork with these tables, and before them with a resource of another type.
pub fn fork(tables: &[Vec<u8>]) -> Vec<u8> {
    let (mut data, mut places) = (Vec::new(), Vec::new());
    for resource in [&[vec![0; 8]], tables].concat() {
        places.push(data.len() as u32);
        data.extend((resource.len() as u32).to_be_bytes());
        data.extend(resource);
    }
    let mut map = vec![0; 28];
    map[25] = 28;
    map.extend(1_u16.to_be_bytes());
    map.extend(b"plst\0\0\0\x12blkx");
    map.extend((tables.len() as u16 - 1).to_be_bytes());
    map.extend(30_u16.to_be_bytes());
    for (number, place) in places.into_iter().enumerate() {
        map.extend((number as u16).to_be_bytes());
        map.extend([0xff, 0xff]);
        map.extend((place | 0x5000_0000).to_be_bytes());
        map.extend([0; 4]);
    }
    let mut fork = vec![0; 256];
    for (at, number) in [(0, 256), (4, 256 + data.len()), (8, data.len()), (12, map.len())] {
        fork[at..at + 4].copy_from_slice(&(number as u32).to_be_bytes());
    }
    [fork, data, map].concat()
}

/// An image of these tables: data, tables and trailer.
pub fn image(data: &[u8], sectors: u64, tables: &[Vec<u8>], layout: &DmgLayout) -> Vec<u8> {
    let mut image = vec![0xee; layout.before];
    image.extend(data);
    let at = image.len() as u64;
    let described = match layout.tables_in {
        TablesIn::List => list(tables),
        TablesIn::Fork => fork(tables),
    };
    image.extend(&described);
    let mut koly = vec![0; 512];
    koly[..4].copy_from_slice(b"koly");
    let long = [
        (16, layout.running),
        (24, layout.before as u64),
        (32, data.len() as u64),
        (if layout.tables_in == TablesIn::List { 216 } else { 40 }, at),
        (if layout.tables_in == TablesIn::List { 224 } else { 48 }, described.len() as u64),
        (492, sectors),
    ];
    for (at, number) in long {
        koly[at..at + 8].copy_from_slice(&number.to_be_bytes());
    }
    for (at, number) in [(4, 4), (8, 512), (12, 1), (56, 1), (60, 1), (80, 2), (84, 32), (88, crc32(data)), (488, 2)] {
        koly[at..at + 4].copy_from_slice(&u32::to_be_bytes(number));
    }
    image.extend(koly);
    image
}

/// An image with this content, which is padded to whole sectors.
pub fn made(content: &[u8], layout: &DmgLayout) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    let sectors = content.len() / 512;
    let (mut data, mut tables, mut number) = (Vec::new(), Vec::new(), 0);
    for (nth, part) in content.chunks(sectors.div_ceil(layout.tables) * 512).enumerate() {
        let (mut entries, mut first) = (Vec::new(), 0);
        for bytes in part.chunks(layout.chunk * 512) {
            number += 1;
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let kind = match (is_zero, number % 2) {
                (true, 0) => ZERO,
                (true, _) => IGNORE,
                _ => layout.kinds[number % layout.kinds.len()],
            };
            let packed = packed(kind, bytes);
            let sectors = bytes.len() as u64 / 512;
            entries.push(Entry { kind, first, sectors, offset: data.len() as u64, length: packed.len() as u64 });
            data.extend(packed);
            first += sectors;
        }
        let offset = data.len() as u64;
        entries.insert(0, Entry { kind: COMMENT, first: 0, sectors: 0, offset: 0, length: 0 });
        entries.push(Entry { kind: TERMINATOR, first, sectors: 0, offset, length: 0 });
        let begin = nth * sectors.div_ceil(layout.tables);
        tables.push(table(begin as u64, first, crc32(part), &entries));
    }
    image(&data, sectors as u64, &tables, layout)
}

/// What a chunk of a type has stored.
///
/// # Panics
/// If a tool fails.
pub fn packed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    match kind {
        ZERO | IGNORE => Vec::new(),
        RAW => bytes.to_vec(),
        ADC => adc(bytes),
        ZLIB => miniz_oxide::deflate::compress_to_vec_zlib(bytes, 6),
        BZIP2 => piped("bzip2", &["-9"], bytes),
        XZ => piped("xz", &["-6", "--check=crc32"], bytes),
        LZFSE => {
            let mut packed = Vec::new();
            lzfse_rust::encode_bytes(bytes, &mut packed).expect("the encoder of lzfse");
            packed
        }
        kind => panic!("chunks of the type {kind:#x} are not written"),
    }
}

/// Compresses in ADC, with codes of each kind.
pub fn adc(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut plain, mut at) = (Vec::new(), 0, 0);
    let mut seen = std::collections::HashMap::new();
    let flush = |out: &mut Vec<u8>, bytes: &[u8]| {
        for part in bytes.chunks(128) {
            out.push(0x7f + part.len() as u8);
            out.extend(part);
        }
    };
    while at < bytes.len() {
        let before = bytes.get(at..at + 4).and_then(|next| seen.insert(next, at));
        let Some(before) = before.filter(|before| at - before <= 1 << 16) else {
            at += 1;
            continue;
        };
        let same = bytes[at..].iter().zip(&bytes[before..]).take_while(|(a, b)| a == b).count().min(67);
        flush(&mut out, &bytes[plain..at]);
        let distance = at - before - 1;
        if same <= 18 && distance < 1024 {
            out.extend([((same - 3) << 2 | distance >> 8) as u8, distance as u8]);
        } else {
            out.extend([0x40 | (same - 4) as u8, (distance >> 8) as u8, distance as u8]);
        }
        at += same;
        plain = at;
    }
    flush(&mut out, &bytes[plain..]);
    out
}
