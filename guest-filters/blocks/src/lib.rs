//! What filters that keep blocks of a disk in the host's scratch file have in common: the host's functions as a trait, the division of
//! a disk into blocks, and copying blocks up from next.
//!
//! The trait is there for the tests: [`Host`] is the real one in a component, and in tests a simulation that interleaves many requests,
//! lets any of its functions fail, and compares what clients read with a model.
#![deny(unsafe_code)]

mod copy;
mod grid;
#[cfg(feature = "sdk")]
pub mod real;
#[cfg(feature = "simulation")]
pub mod simulation;

pub use copy::{CHUNK, Copied, Want, copy_up, read_next, write_next};
pub use grid::Grid;

/// The request's own buffer.
pub const PAYLOAD: u32 = 0;

/// Errors that algorithms have to know apart.
pub trait Fault: Copy + std::fmt::Debug {
    /// The answer to a fast zero request that would be slow.
    const NOT_SUPPORTED: Self;
    /// Whether it says that scratch is full.
    fn is_full(self) -> bool;
}

/// Whether a lock is held with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With other shared ones.
    Shared,
    /// Alone.
    Exclusive,
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroing {
    /// Durable when answered.
    pub fua: bool,
    /// A hole may be left.
    pub may_trim: bool,
    /// Not supported, rather than slow.
    pub fast: bool,
}

/// A run of bytes of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zero.
    pub zero: bool,
}

/// Four words that change together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Changes with every change.
    pub version: u64,
    /// The words.
    pub words: [u64; 4],
}

/// The host, as one call sees it. Maps, slots, locks and scratch are those of the export. Sets of states have bit n for state n.
pub trait Host {
    /// What its functions fail with.
    type Error: Fault;

    /// Waits for a lock on a range; one at a time.
    fn lock(&self, offset: u64, length: u64, mode: Mode) -> Result<(), Self::Error>;
    /// Ends it; the end of the call does as well.
    fn unlock(&self);

    /// The state of a block, and how many from there on (1 to `limit`) have the same.
    fn run(&self, map: u32, first: u64, limit: u64) -> (u8, u64);
    /// The first block from `first` on in one of `states`.
    fn find(&self, map: u32, first: u64, states: u8) -> Option<u64>;
    /// Sets those blocks that are in one of `states`; answers how many were.
    fn set(&self, map: u32, first: u64, count: u64, states: u8, to: u8) -> u64;
    /// How many blocks are in a state that is not 0.
    fn count(&self, map: u32, state: u8) -> u64;
    /// A slot.
    fn slot(&self, slot: u32) -> Words;
    /// Replaces a slot if nobody did since it was read.
    fn replace(&self, slot: u32, version: u64, words: [u64; 4]) -> bool;

    /// Scratch into a buffer.
    fn scratch_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// A buffer into scratch.
    fn scratch_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// Frees a range of scratch, which then reads as zero.
    fn scratch_punch(&self, offset: u64, length: u64) -> Result<(), Self::Error>;

    /// The export's size.
    fn size(&self) -> Result<u64, Self::Error>;
    /// The longest read or write that next takes.
    fn next_max(&self) -> u32;
    /// Next into a buffer.
    fn next_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Self::Error>;
    /// A buffer into next.
    fn next_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32, fua: bool) -> Result<(), Self::Error>;
    /// Makes next durable.
    fn next_flush(&self) -> Result<(), Self::Error>;
    /// Zeroes below.
    fn next_zero(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), Self::Error>;
    /// Discards below.
    fn next_trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Self::Error>;
    /// Caches below.
    fn next_cache(&self, offset: u64, length: u64) -> Result<(), Self::Error>;
    /// What next knows of a range: from its start, without gaps, within it, possibly shorter.
    fn next_extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, Self::Error>;

    /// A further buffer. It fails rather than wait.
    fn alloc(&self, length: u32) -> Result<u32, Self::Error>;
    /// Ends it.
    fn free(&self, buf: u32);
    /// Copies between buffers.
    fn copy(&self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32);
    /// Makes a part of a buffer zero.
    fn clear(&self, buf: u32, at: u32, length: u32);
}

/// A further buffer that ends with its scope.
pub struct Temp<'h, H: Host> {
    host: &'h H,
    id: u32,
}

impl<'h, H: Host> Temp<'h, H> {
    /// `length` bytes that read as zero.
    pub fn new(host: &'h H, length: u32) -> Result<Self, H::Error> {
        Ok(Temp { host, id: host.alloc(length)? })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl<H: Host> Drop for Temp<'_, H> {
    fn drop(&mut self) {
        self.host.free(self.id);
    }
}
