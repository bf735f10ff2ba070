//! The reference model of a disk: plain bytes, and a seeded crowd of clients that compares a server
//! with them.
//!
//! The disk is cut into stripes whose length is no multiple of a filter's block. Each stripe
//! belongs to one connection at a time. Only the owner changes a stripe, and it never has two
//! overlapping requests in flight of which one writes. So each byte that a connection owns has
//! exactly one right value at any time, although neighbours write to the same block of a filter.
//! Between phases all requests are answered and the stripes change owners, so that one connection
//! reads what another one wrote.

mod crowd;
mod disk;
mod stripe;
mod worker;

pub use crowd::{Crowd, Tally};
pub use disk::{Disk, content, sparse};
