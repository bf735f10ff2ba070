//! The reference model: what a disk is, as plain bytes, and a seeded crowd of clients that compares a server with it.
//!
//! The disk is cut into stripes whose length suits no filter's block, and each stripe belongs to one connection at a time. Only the owner
//! changes a stripe, and never two overlapping requests at once, so at any moment there is exactly one right answer for
//! every byte that a connection owns; neighbours that share a filter's block with it write at the same time. Between phases every request is
//! answered, and then the stripes change hands, so what one connection wrote is read by others.

mod crowd;
mod disk;
mod stripe;
mod worker;

pub use crowd::{Crowd, Tally};
pub use disk::{Disk, content, sparse};
