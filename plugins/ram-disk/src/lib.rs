//! What the plugins that keep a disk in memory share (memory and data).
//!
//! * [`Allocator`] is the parameter `allocator=`.
//! * [`Flat`] is the storage of `allocator=malloc`: all of the disk is allocated at the start.
//! * [`Pages`] are what a sparse storage is made of, compressed with `allocator=zstd`.
//! * [`RamDisk`] is a disk of any [`Storage`], as clients see it.
//!
//! Each plugin brings its own storage for `allocator=sparse` and `allocator=zstd`. No operation
//! waits, so every answer is ready at once.

mod allocator;
mod disk;
mod flat;
mod mlock;
mod page;

pub use allocator::{Allocator, Residency};
pub use disk::{RamDisk, Storage};
pub use flat::{AllocationError, Flat};
pub use page::{PAGE, Page, Pages, Zero};
