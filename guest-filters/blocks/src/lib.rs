//! Shared code of the filters that keep blocks of a disk in the host's scratch file: the host's
//! functions as a trait, the division of a disk into blocks, the states of the blocks, and copying
//! blocks from next into scratch.
//!
//! The host is a trait for the sake of the tests. In a component it is `sdk_host::SdkHost`. In
//! tests it is a simulation, which interleaves many requests, makes any of its functions fail, and
//! compares what clients read with a model.

mod block_size;
mod copy;
mod host;
#[cfg(feature = "sdk")]
pub mod sdk_glue;
#[cfg(feature = "sdk")]
pub mod sdk_host;
#[cfg(feature = "simulation")]
pub mod simulation;
mod states;

pub use block_size::{BlockSize, TouchedBlocks};
pub use copy::{CHUNK, Copied, Wanted, copy_up, merge_block, merge_edges, read_next, write_next};
pub use host::{Extent, Host, HostError, Mode, PAYLOAD, TempBuffer, Words, ZeroFlags};
pub use states::{ABSENT, BlockStates};
