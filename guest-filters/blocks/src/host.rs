//! The functions of the host as a trait, with the types that they need.

use std::fmt::Debug;

/// The request's own buffer.
pub const PAYLOAD: u32 = 0;

/// An error of the host. The algorithms only need to recognise two of them.
pub trait HostError: Copy + Debug {
    /// The answer to a fast zero request that would be slow.
    const NOT_SUPPORTED: Self;
    /// Whether the error says that scratch is full.
    fn is_full(self) -> bool;
}

/// The mode of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Other shared locks may overlap.
    Shared,
    /// No other lock may overlap.
    Exclusive,
}

/// The flags of a zero request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The zeroes are durable when the request is answered.
    pub fua: bool,
    /// The request may leave a hole.
    pub may_trim: bool,
    /// The request fails with "not supported" if it would be slow.
    pub fast: bool,
}

/// A run of bytes of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zero.
    pub zero: bool,
}

/// A slot: four words that change together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Changes with every change of the words.
    pub version: u64,
    /// The words.
    pub words: [u64; 4],
}

/// The host, as one call sees it. Maps, slots, locks and scratch belong to the export. In a set of
/// states, bit n stands for state n. Offsets and lengths are in bytes.
pub trait Host {
    /// The error of all functions.
    type Error: HostError;

    /// Waits until a lock on the range is granted. A call holds at most one lock.
    fn lock(&self, offset: u64, length: u64, mode: Mode) -> Result<(), Self::Error>;
    /// Releases the lock. The end of the call releases it as well.
    fn unlock(&self);

    /// The state of block `first`, and how many blocks from there on have it (1 to `limit`).
    fn run(&self, map: u32, first: u64, limit: u64) -> (u8, u64);
    /// The first block, from `first` on, in one of `states`.
    fn find(&self, map: u32, first: u64, states: u8) -> Option<u64>;
    /// Sets those blocks that are in one of `states` to `to`. Returns how many they were.
    fn set(&self, map: u32, first: u64, count: u64, states: u8, to: u8) -> u64;
    /// How many blocks are in `state`, which must not be 0.
    fn count(&self, map: u32, state: u8) -> u64;
    /// Reads a slot.
    fn slot(&self, slot: u32) -> Words;
    /// Replaces a slot if it still has this version. True if it did.
    fn replace(&self, slot: u32, version: u64, words: [u64; 4]) -> bool;

    /// Reads scratch into a buffer, from position `at` on.
    fn scratch_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// Writes a buffer, from position `at` on, into scratch.
    fn scratch_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// Frees a range of scratch, which then reads as zero.
    fn scratch_punch(&self, offset: u64, length: u64) -> Result<(), Self::Error>;

    /// The export's size.
    fn size(&self) -> Result<u64, Self::Error>;
    /// The longest read or write that next accepts.
    fn next_max(&self) -> u32;
    /// Reads next into a buffer, from position `at` on.
    fn next_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// Writes a buffer, from position `at` on, to next.
    fn next_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32, fua: bool) -> Result<(), Self::Error>;
    /// Flushes next.
    fn next_flush(&self) -> Result<(), Self::Error>;
    /// Makes a range of next read as zero.
    fn next_zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), Self::Error>;
    /// Discards a range of next.
    fn next_trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Self::Error>;
    /// Makes next cache a range.
    fn next_cache(&self, offset: u64, length: u64) -> Result<(), Self::Error>;
    /// Next's extents of a range: from its start, without gaps, possibly shorter. Unless `one`, the
    /// last one may run on beyond the range up to `limit`.
    fn next_extents(&self, offset: u64, length: u64, limit: u64, one: bool) -> Result<Vec<Extent>, Self::Error>;

    /// Allocates a buffer that reads as zero. It fails rather than wait.
    fn alloc(&self, length: u32) -> Result<u32, Self::Error>;
    /// Frees a buffer.
    fn free(&self, buf: u32);
    /// Copies between buffers.
    fn copy(&self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32);
    /// Makes a part of a buffer zero.
    fn clear(&self, buf: u32, at: u32, length: u32);
}

/// A buffer that is freed when it is dropped.
pub struct TempBuffer<'h, H: Host> {
    host: &'h H,
    id: u32,
}

impl<'h, H: Host> TempBuffer<'h, H> {
    /// Allocates `length` bytes, which read as zero.
    ///
    /// # Errors
    /// If the host has no memory for it now.
    pub fn new(host: &'h H, length: u32) -> Result<Self, H::Error> {
        Ok(TempBuffer { host, id: host.alloc(length)? })
    }

    /// The buffer's number.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl<H: Host> Drop for TempBuffer<'_, H> {
    fn drop(&mut self) {
        self.host.free(self.id);
    }
}
