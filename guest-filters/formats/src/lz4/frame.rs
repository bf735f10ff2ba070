//! The headers of frames.

use std::hash::Hasher;

use rbdkit_filter_sdk::image::{Error, Fields};
use twox_hash::XxHash32;

use crate::unpack::Input;
use crate::unpack::frames::{next_frame, other_frame};

/// What a frame begins with, as a little-endian number.
pub(super) const MAGIC: u32 = 0x184d_2204;
/// The same of a frame in the format of the first versions of lz4.
pub(super) const LEGACY_MAGIC: u32 = 0x184c_2102;
pub(super) const MAGICS: [u32; 2] = [MAGIC, LEGACY_MAGIC];

/// A linked block refers to this many bytes before it.
pub(super) const WINDOW: usize = 64 << 10;
/// The largest frame that is decoded within a request. Blocks give at least 300 MB/s in a filter.
pub(super) const MAX_UNIT: u64 = 64 << 20;

/// The size of the blocks of a legacy frame.
const LEGACY_BLOCK: usize = 8 << 20;

const VERSION: u8 = 0xc0;
const VERSION_1: u8 = 0x40;
const INDEPENDENT: u8 = 0x20;
const BLOCK_CHECKSUMS: u8 = 0x10;
const HAS_SIZE: u8 = 8;
const HAS_CHECKSUM: u8 = 4;
const RESERVED: u8 = 2;
const HAS_DICTIONARY: u8 = 1;

/// What the blocks of a frame are like: a byte that is never 0. Bits 4 to 6 are the size of its
/// blocks as its header has it, and 0 for a legacy frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    const LEGACY: Kind = Kind(Kind::INDEPENDENT);
    const INDEPENDENT: u8 = 1;
    const BLOCK_CHECKSUMS: u8 = 2;
    const CHECKSUM: u8 = 4;

    pub(super) fn is_legacy(self) -> bool {
        self.0 >> 4 == 0
    }

    /// Whether blocks do not refer to those before them.
    pub(super) fn is_independent(self) -> bool {
        self.0 & Kind::INDEPENDENT != 0
    }

    pub(super) fn has_block_checksums(self) -> bool {
        self.0 & Kind::BLOCK_CHECKSUMS != 0
    }

    /// Whether a checksum of its data follows the last block.
    pub(super) fn has_checksum(self) -> bool {
        self.0 & Kind::CHECKSUM != 0
    }

    /// The most bytes of data of a block.
    pub(super) fn max_block(self) -> usize {
        match self.0 >> 4 {
            0 => LEGACY_BLOCK,
            code => 1 << (8 + 2 * code.min(7)),
        }
    }

    /// The most bytes of a block in the file.
    pub(super) fn max_stored(self) -> usize {
        match self.is_legacy() {
            true => LEGACY_BLOCK + LEGACY_BLOCK / 255 + 16,
            false => self.max_block(),
        }
    }

    /// The place of a block within a frame. The place of a frame is its offset times 256.
    pub(super) fn place(self, offset: u64) -> u64 {
        offset << 8 | u64::from(self.0)
    }

    /// The offset of a place, and the frame's kind if it is within one.
    pub(super) fn split(place: u64) -> (u64, Option<Kind>) {
        let kind = place as u8;
        (place >> 8, (kind != 0).then_some(Kind(kind)))
    }
}

/// The header of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub at: u64,
    pub kind: Kind,
    /// How much data it has, if it says so.
    pub content_size: Option<u64>,
}

/// Reads the header of the next frame. None at the end of the file.
///
/// # Errors
/// Those of the source, and a line if there is no frame, or it needs what is not supported.
pub(super) fn next(input: &mut Input) -> Result<Option<Frame>, Error> {
    const WHAT: &str = "the header of an lz4 frame";
    let Some((at, magic)) = next_frame(input)? else { return Ok(None) };
    let wrong = |what: String| Error::image(format!("the lz4 frame at {at} {what}"));
    match magic {
        MAGIC => {}
        LEGACY_MAGIC => return Ok(Some(Frame { at, kind: Kind::LEGACY, content_size: None })),
        _ => return Err(other_frame("lz4", at, magic, &MAGICS)),
    }
    let [flags, sizes] = input.array(WHAT)?;
    if flags & VERSION != VERSION_1 {
        return Err(wrong(format!("has version {}; version 1 is supported", flags >> 6)));
    }
    let code = sizes >> 4 & 7;
    if flags & RESERVED != 0 || sizes & 0x8f != 0 || code < 4 {
        return Err(wrong(format!("has the flags {flags:02x}{sizes:02x}, which are not possible")));
    }
    let mut descriptor = vec![flags, sizes];
    let length = if flags & HAS_SIZE != 0 { 8 } else { 0 } + if flags & HAS_DICTIONARY != 0 { 4 } else { 0 };
    descriptor.resize(2 + length, 0);
    input.fill(&mut descriptor[2..], WHAT)?;
    let [checksum] = input.array(WHAT)?;
    let found = (XxHash32::oneshot(0, &descriptor) >> 8) as u8;
    if checksum != found {
        return Err(wrong(format!("has the wrong checksum in its header: {checksum:02x}, and not {found:02x}")));
    }
    let fields = Fields::little(&descriptor, WHAT);
    if flags & HAS_DICTIONARY != 0 {
        let id = fields.u32(length - 2)?;
        return Err(wrong(format!("needs the dictionary {id}; files with dictionaries are not supported")));
    }
    let content_size = if flags & HAS_SIZE != 0 { Some(fields.u64(2)?) } else { None };
    let mut kind = code << 4;
    for (flag, bit) in
        [(INDEPENDENT, Kind::INDEPENDENT), (BLOCK_CHECKSUMS, Kind::BLOCK_CHECKSUMS), (HAS_CHECKSUM, Kind::CHECKSUM)]
    {
        if flags & flag != 0 {
            kind |= bit;
        }
    }
    Ok(Some(Frame { at, kind: Kind(kind), content_size }))
}

/// The checksum of lz4, for data that comes in pieces.
pub(super) struct Sum(XxHash32);

impl Sum {
    pub(super) fn new() -> Sum {
        Sum(XxHash32::with_seed(0))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(super) fn finish(&self) -> u32 {
        self.0.finish_32()
    }
}
