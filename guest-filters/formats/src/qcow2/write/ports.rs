//! What writing needs beside the image: the layer below, and what all instances share.

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::buffer::Bytes;

use crate::qcow2::layout::Entry;

/// The bytes of a write.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// In the guest's memory.
    Guest(&'a [u8]),
    /// In a buffer of the host.
    Buffer(&'a Bytes),
    /// Zeroes.
    Zeroes,
}

/// The layer below, which is written. Its size is fixed.
pub trait Below {
    /// Writes bytes of the guest.
    ///
    /// # Errors
    /// Those of next.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// Writes `length` bytes of a buffer of the host, from position `at` on.
    ///
    /// # Errors
    /// Those of next.
    fn write_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Errno>;

    /// Makes a range read as zero.
    ///
    /// # Errors
    /// Those of next.
    fn zero(&self, offset: u64, length: u64) -> Result<(), Errno>;

    /// Tells that nothing needs a range any more.
    ///
    /// # Errors
    /// Those of next.
    fn discard(&self, offset: u64, length: u64) -> Result<(), Errno>;

    /// Makes durable what was written before, by all connections.
    ///
    /// # Errors
    /// Those of next.
    fn flush(&self) -> Result<(), Errno>;
}

/// A change of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// The entry at this offset of the image is now this one.
    Entry {
        /// In bytes.
        at: u64,
        /// The entry.
        entry: Entry,
    },
    /// Something within these bytes of the image has changed.
    Bytes {
        /// In bytes.
        at: u64,
        /// In bytes.
        length: u64,
    },
    /// There is another table.
    Table,
}

/// How a range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Other shared locks may overlap.
    Shared,
    /// No other lock may overlap.
    Exclusive,
}

/// The maps that all instances share. Each has a state of 0 to 3 for each cluster of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMap {
    /// What a cluster is used for: one of [`PLAIN`], [`META`], [`RESERVED`], [`TABLE`].
    Roles,
    /// By how much the reference count of a cluster is to be lowered after the next flush.
    Pending,
}

/// The cluster has data, or is free.
pub const PLAIN: u8 = 0;
/// The cluster has the header, an L1 table, reference counts or the table of snapshots.
pub const META: u8 = 1;
/// The cluster is free. Its reference count is one, and it is zero: both are durable.
pub const RESERVED: u8 = 2;
/// The cluster has an L2 table.
pub const TABLE: u8 = 3;

/// What all instances of the filter share for one disk. No function but `lock` waits.
pub trait Shared {
    /// Locks `count` clusters of the disk from `first` on. A call holds one lock at most.
    ///
    /// # Errors
    /// ESHUTDOWN if the server stops.
    fn lock(&self, first: u64, count: u64, lock: Lock) -> Result<(), Errno>;

    /// Releases the lock of this call.
    fn unlock(&self);

    /// Writes a line to the log, as a warning.
    fn warn(&self, line: &str);

    /// How often tables were changed.
    fn generation(&self) -> u64;

    /// Counts a change of the tables, which was made, and returns the number of changes with it.
    fn count_change(&self, change: TableChange) -> u64;

    /// The change of this number, if it is still known.
    fn change(&self, number: u64) -> Option<TableChange>;

    /// Two numbers that [`Space`](super::space::Space) keeps. They are zero at first.
    fn search(&self) -> (u64, u64);

    /// Sets them.
    fn set_search(&self, numbers: (u64, u64));

    /// How many flushes began, and the number of the last one that made everything durable that was
    /// written before it began.
    fn flushes(&self) -> (u64, u64);

    /// Sets them. Only one request does so at a time.
    fn set_flushes(&self, numbers: (u64, u64));

    /// Whether the header has no autoclear bits any more.
    fn is_cleared(&self) -> bool;

    /// Sets that.
    fn set_cleared(&self);

    /// The state of a cluster, and how many from it on have the same, at most `limit`.
    fn run(&self, map: ClusterMap, first: u64, limit: u64) -> (u8, u64);

    /// The first cluster from `first` on in one of `states`: bit n stands for state n.
    fn find(&self, map: ClusterMap, first: u64, states: u8) -> Option<u64>;

    /// Sets those of `count` clusters that are in one of `states` to `to`. Returns how many they
    /// were.
    fn set(&self, map: ClusterMap, first: u64, count: u64, states: u8, to: u8) -> u64;
}
