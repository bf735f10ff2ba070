//! Conversions between such a filter and the SDK: block sizes, flags and extents.

use rbdkit_filter_sdk::prelude::*;

use crate::host;

/// The block sizes that the user may choose, in bytes. The longest buffer has 64 MiB. Below 4 KiB
/// no file system frees space.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 4096..=64 << 20;

/// The block size that the user gets without choosing one.
pub const DEFAULT_BLOCK_SIZE: Size = Size(64 << 10);

/// Checks a parameter that chooses the block size.
///
/// # Errors
/// What is wrong, if the value is not a power of two from 4k to 64M.
pub fn check_block_size(size: &Size) -> Result<(), String> {
    match size.0.is_power_of_two() && BLOCK_SIZES.contains(&size.0) {
        true => Ok(()),
        false => Err("not a power of two from 4k to 64M".into()),
    }
}

/// The block size that the filter uses, as a power of two: `wanted` or next's minimum, whichever is
/// larger. `wanted` is a power of two in bytes.
pub fn block_bits(wanted: u64) -> u32 {
    let minimum = next::block_size().map_or(1, |sizes| u64::from(sizes.minimum));
    wanted.max(minimum).max(1).trailing_zeros()
}

/// The block sizes that the filter states: next's, but at least its own block size as the preferred
/// one, if that is not above next's maximum.
pub fn block_sizes(block: u64) -> BlockSizes {
    // The protocol allows preferred sizes from 512 bytes to 32 MiB.
    let block = block.clamp(512, 32 << 20) as u32;
    match next::block_size() {
        Ok(sizes) if sizes.maximum >= block => BlockSizes { preferred: sizes.preferred.max(block), ..sizes },
        Ok(sizes) => sizes,
        Err(_) => BlockSizes { minimum: 1, preferred: block, maximum: u32::MAX },
    }
}

/// The flags of a zero request.
pub fn zero_flags(flags: CommandFlags) -> host::ZeroFlags {
    host::ZeroFlags {
        fua: flags.contains(CommandFlags::FUA),
        may_trim: flags.contains(CommandFlags::MAY_TRIM),
        fast: flags.contains(CommandFlags::FAST_ZERO),
    }
}

/// Converts extents into those of the contract.
pub fn contract_extents(list: Vec<host::Extent>) -> Vec<Extent> {
    let convert = |e: host::Extent| {
        let mut kind = ExtentType::empty();
        kind.set(ExtentType::HOLE, e.hole);
        kind.set(ExtentType::ZERO, e.zero);
        Extent { offset: e.offset, length: e.length, kind }
    };
    list.into_iter().map(convert).collect()
}
