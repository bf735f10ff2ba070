//! A writer of VHDX images, with logs and parents. No free program writes those. It follows
//! Microsoft's specification.

use crate::checksum::CRC32C;
use crate::guid::Guid;

/// Where the writer puts the log, the block allocation table, the metadata and the first block.
/// Each but the last has 1 MiB.
pub const LOG: usize = 1 << 20;
/// The block allocation table.
pub const BAT: usize = 2 << 20;
/// The metadata.
pub const METADATA: usize = 3 << 20;
/// The first block.
pub const BLOCKS: usize = 4 << 20;
/// Where the items of the metadata begin: the file parameters, the size of the disk, its
/// identifier, the logical and the physical sector size, the parent locator. Each has 4 KiB.
pub const ITEMS: usize = METADATA + (64 << 10);
/// Bytes of the log.
pub const LOG_SIZE: usize = 1 << 20;
/// The identifier of the log.
pub const LOG_GUID: Guid = Guid::new(1, 2, 3, 4);
/// The identifier of the data.
pub const DATA_WRITE: Guid = Guid::new(0xdada_0001, 0xdada, 0xdada, 0xdada);

const REGIONS: [(Guid, usize); 2] = [
    (Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08), BAT),
    (Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e), METADATA),
];
const METADATA_ITEMS: [Guid; 6] = [
    Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b),
    Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8),
    Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746),
    Guid::new(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f),
    Guid::new(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556),
    Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c),
];
const LOCATOR: Guid = Guid::new(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

/// What an image is to be.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Bytes of a block.
    pub block: u32,
    /// Bytes of a logical sector.
    pub sector: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// 1 if blocks keep their places, and 2 if there is a parent.
    pub flags: u32,
    /// Keys and values of the parent locator.
    pub locator: Vec<(&'static str, String)>,
    /// Entries of the table: index, state, and the offset in MiB.
    pub table: Vec<(usize, u64, u64)>,
    /// What the image has from [`BLOCKS`] on.
    pub blocks: Vec<u8>,
}

impl Default for Layout {
    fn default() -> Layout {
        let (block, sector) = (1 << 20, 512);
        Layout { block, sector, size: 4 << 20, flags: 0, locator: Vec::new(), table: Vec::new(), blocks: Vec::new() }
    }
}

/// Writes `value` at `at`.
pub fn put(image: &mut [u8], at: usize, value: &[u8]) {
    image[at..at + value.len()].copy_from_slice(value);
}

impl Layout {
    /// The image, with an empty log.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; BLOCKS];
        put(&mut image, 0, b"vhdxfile");
        put(&mut image, 8, &utf16("a test"));
        for (sequence, at) in [(7u64, 64 << 10), (8, 128 << 10)] {
            put(&mut image, at, b"head");
            put(&mut image, at + 8, &sequence.to_le_bytes());
            put(&mut image, at + 32, &DATA_WRITE.0);
            put(&mut image, at + 66, &[1]);
            put(&mut image, at + 68, &(LOG_SIZE as u32).to_le_bytes());
            put(&mut image, at + 72, &(LOG as u64).to_le_bytes());
        }
        for at in [192 << 10, 256 << 10] {
            put(&mut image, at, b"regi");
            put(&mut image, at + 8, &[2]);
            for (n, (guid, place)) in REGIONS.iter().enumerate() {
                let entry = at + 16 + n * 32;
                put(&mut image, entry, &guid.0);
                put(&mut image, entry + 16, &(*place as u64).to_le_bytes());
                put(&mut image, entry + 24, &[0, 0, 16, 0, 1]);
            }
        }
        let mut items = vec![
            [self.block.to_le_bytes(), self.flags.to_le_bytes()].concat(),
            self.size.to_le_bytes().to_vec(),
            Guid::new(0xd15c, 1, 2, 3).0.to_vec(),
            self.sector.to_le_bytes().to_vec(),
            4096u32.to_le_bytes().to_vec(),
        ];
        if self.flags & 2 != 0 {
            items.push(locator(&self.locator));
        }
        put(&mut image, METADATA, b"metadata");
        put(&mut image, METADATA + 10, &[items.len() as u8]);
        for (n, (guid, item)) in METADATA_ITEMS.iter().zip(&items).enumerate() {
            let (entry, at) = (METADATA + 32 + n * 32, ITEMS + n * 4096);
            put(&mut image, entry, &guid.0);
            put(&mut image, entry + 16, &((at - METADATA) as u32).to_le_bytes());
            put(&mut image, entry + 20, &(item.len() as u32).to_le_bytes());
            put(&mut image, entry + 24, &[4]);
            put(&mut image, at, item);
        }
        for (index, state, place) in &self.table {
            put_block(&mut image, *index, *state, *place);
        }
        image.extend(&self.blocks);
        seal(&mut image);
        image
    }
}

/// Writes an entry of the table.
pub fn put_block(image: &mut [u8], index: usize, state: u64, mib: u64) {
    put(image, BAT + index * 8, &(mib << 20 | state).to_le_bytes());
}

/// Text as the format has it.
pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A parent locator.
pub fn locator(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut bytes = LOCATOR.0.to_vec();
    bytes.extend([0, 0]);
    bytes.extend((pairs.len() as u16).to_le_bytes());
    let mut texts = Vec::new();
    for (key, value) in pairs {
        let (key, value) = (utf16(key), utf16(value));
        let at = 20 + pairs.len() * 12 + texts.len();
        bytes.extend((at as u32).to_le_bytes());
        bytes.extend(((at + key.len()) as u32).to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend((value.len() as u16).to_le_bytes());
        texts.extend([key, value].concat());
    }
    [bytes, texts].concat()
}

/// Writes the checksums of the headers and the region tables.
pub fn seal(image: &mut [u8]) {
    for (at, length) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
        if let Some(bytes) = image.get_mut(at..at + length) {
            sign(bytes);
        }
    }
}

/// Writes the checksum of a structure.
pub fn sign(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = CRC32C.checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// What an entry of the log replaces.
#[derive(Clone, Debug)]
pub enum Change {
    /// A sector of 4096 bytes at this offset.
    Data(u64, Vec<u8>),
    /// Zeroes from this offset on, so many bytes.
    Zero(u64, u64),
}

/// An entry of the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its number.
    pub sequence: u64,
    /// Where the first entry of its sequence is in the log.
    pub tail: u32,
    /// How large the image was.
    pub flushed: u64,
    /// How large the image is to be.
    pub last: u64,
    /// What it replaces.
    pub changes: Vec<Change>,
}

impl LogEntry {
    /// The entry as the log has it.
    pub fn bytes(&self) -> Vec<u8> {
        let count = self.changes.len();
        let mut bytes = vec![0; (64 + count * 32).next_multiple_of(4096)];
        for (n, change) in self.changes.iter().enumerate() {
            let at = 64 + n * 32;
            let start = match change {
                Change::Data(start, data) => {
                    put(&mut bytes, at, b"desc");
                    put(&mut bytes, at + 4, &data[4092..]);
                    put(&mut bytes, at + 8, &data[..8]);
                    let mut sector = data.clone();
                    put(&mut sector, 0, b"data");
                    put(&mut sector, 4, &((self.sequence >> 32) as u32).to_le_bytes());
                    put(&mut sector, 4092, &(self.sequence as u32).to_le_bytes());
                    bytes.extend(sector);
                    start
                }
                Change::Zero(start, length) => {
                    put(&mut bytes, at, b"zero");
                    put(&mut bytes, at + 8, &length.to_le_bytes());
                    start
                }
            };
            put(&mut bytes, at + 16, &start.to_le_bytes());
            put(&mut bytes, at + 24, &self.sequence.to_le_bytes());
        }
        put(&mut bytes, 0, b"loge");
        let length = bytes.len() as u32;
        put(&mut bytes, 8, &length.to_le_bytes());
        put(&mut bytes, 12, &self.tail.to_le_bytes());
        put(&mut bytes, 16, &self.sequence.to_le_bytes());
        put(&mut bytes, 24, &(count as u32).to_le_bytes());
        put(&mut bytes, 32, &LOG_GUID.0);
        put(&mut bytes, 48, &self.flushed.to_le_bytes());
        put(&mut bytes, 56, &self.last.to_le_bytes());
        sign(&mut bytes);
        bytes
    }
}

/// Writes bytes to the log from `at` on, around its end, and says that it is needed. Returns where
/// the next ones go.
pub fn put_log(image: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    for (n, byte) in bytes.iter().enumerate() {
        image[LOG + (at + n) % LOG_SIZE] = *byte;
    }
    for header in [64 << 10, 128 << 10] {
        put(image, header + 48, &LOG_GUID.0);
    }
    seal(image);
    (at + bytes.len()) % LOG_SIZE
}
