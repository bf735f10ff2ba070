//! What stands on the parts of a disk: in the record, or written by the filter.

use std::sync::Arc;

use rbdkit_plugin_api::{Errno, Error, Held, Quota, Result};

use super::ranges::Detail;
use super::session::{Data, Recording, seed_of, synthetic};

/// What stands on a part of a disk.
#[derive(Clone, Debug)]
pub enum RangeContent {
    Zeroes,
    /// Discarded. It reads as zeroes, like a hole.
    Trimmed,
    /// In the record's file, from this byte on.
    Stored(u64),
    /// Bytes that stand for those with a digest that has this seed.
    Synthetic(u64),
    /// Bytes that the filter wrote: from this one on.
    Written(Arc<Written>, usize),
}

/// Bytes that the filter wrote.
#[derive(Debug)]
pub struct Written {
    bytes: Box<[u8]>,
    _held: Held,
}

/// The most bytes of content that filters write and that is kept: more than the longest record by
/// default has. A filter that writes more gets ENOSPC.
pub const MAX_WRITTEN: u64 = 4 << 30;

/// A write takes at least this much of [`MAX_WRITTEN`], because of what is kept beside its bytes.
const MIN_WRITTEN: u64 = 256;

impl Detail for RangeContent {
    fn after(&self, skip: u64) -> RangeContent {
        match self {
            RangeContent::Stored(at) => RangeContent::Stored(at + skip),
            RangeContent::Written(bytes, at) => RangeContent::Written(Arc::clone(bytes), at + skip as usize),
            other => other.clone(),
        }
    }
}

impl RangeContent {
    /// The content that a recorded payload leaves.
    pub fn of(data: Data) -> RangeContent {
        match data {
            Data::Zeroes => RangeContent::Zeroes,
            Data::Stored(at) => RangeContent::Stored(at),
            Data::Digest(digest) => RangeContent::Synthetic(seed_of(&digest)),
        }
    }

    /// Bytes that the filter wrote.
    ///
    /// # Errors
    /// ENOSPC if the quota has no room for them.
    pub fn keep(quota: &Arc<Quota>, bytes: &[u8]) -> Result<RangeContent> {
        let held = quota.hold((bytes.len() as u64).max(MIN_WRITTEN));
        let held =
            held.ok_or_else(|| Error::new(Errno::Enospc, "a replay keeps at most 4 GiB that a filter writes"))?;
        Ok(RangeContent::Written(Arc::new(Written { bytes: bytes.into(), _held: held }), 0))
    }

    /// Puts the bytes into `into`, which begin at this offset of the disk.
    ///
    /// # Errors
    /// The record's file cannot be read.
    pub fn copy(&self, recording: &Recording, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        match self {
            RangeContent::Zeroes | RangeContent::Trimmed => into.fill(0),
            RangeContent::Stored(at) => recording.read(into, *at)?,
            RangeContent::Synthetic(seed) => synthetic(into, *seed, offset),
            RangeContent::Written(bytes, at) => into.copy_from_slice(&bytes.bytes[*at..][..into.len()]),
        }
        Ok(())
    }
}

/// Puts the part of a content that begins `skip` bytes later into `into`, which begins at `offset`
/// of the disk.
///
/// # Errors
/// The record's file cannot be read.
pub fn copy(
    content: &RangeContent,
    recording: &Recording,
    skip: u64,
    offset: u64,
    into: &mut [u8],
) -> std::io::Result<()> {
    content.after(skip).copy(recording, offset, into)
}
