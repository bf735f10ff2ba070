//! The numbers that mark the parts of a file.

/// The start of a stream. A digit follows: the size of its blocks in units of 100 kB.
pub(super) const MAGIC: &[u8; 3] = b"BZh";
/// The start of a block: digits of pi.
pub(super) const BLOCK_MAGIC: u64 = 0x3141_5926_5359;
/// What stands after the last block: digits of the square root of pi. A CRC follows.
pub(super) const END_MAGIC: u64 = 0x1772_4538_5090;
/// A place is the number of a bit, twice, and 1 if a block begins there and not a stream.
pub(super) const WITHIN: u64 = 1;
