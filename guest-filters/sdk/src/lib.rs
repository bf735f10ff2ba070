//! The library for rbdkit filters that are written in Rust.
//!
//! A filter is a type, and implements the traits of the operations that it changes:
//!
//! ```
//! use rbdkit_filter_sdk::prelude::*;
//!
//! /// Answers every read with 0xff bytes below `limit`.
//! pub struct Bright {
//!     limit: u64,
//! }
//!
//! impl Filter for Bright {
//!     fn describe() -> Description {
//!         Description::new("bright", env!("CARGO_PKG_VERSION"), "shows the start as 0xff")
//!             .thread_model(ThreadModel::Parallel)
//!             .param(Param::size("bright-limit").default("64k").help("Bytes to show as 0xff."))
//!     }
//!
//!     fn configure(params: &Params) -> Result<Self, String> {
//!         Ok(Bright { limit: params.size("bright-limit")?.unwrap_or(65536) })
//!     }
//! }
//!
//! impl Reads for Bright {
//!     fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
//!         next::pread(offset, length, PAYLOAD, 0)?;
//!         let bright = self.limit.saturating_sub(offset).min(length.into()) as u32;
//!         buffer::fill(PAYLOAD, 0, bright, 0xff);
//!         Ok(())
//!     }
//! }
//!
//! impl Writes for Bright {
//!     fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
//!         next::pwrite(offset, length, PAYLOAD, 0, flags)
//!     }
//! }
//!
//! rbdkit_filter_sdk::export!(Bright: reads, writes);
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown`, and make a component of the result.
//! [`export!`] takes the names of the interfaces that the filter exports, as the contract calls
//! them. For an interface that is not named the host acts without entering the filter (see
//! [`Unexported`]). Without `writes` the example would make the disk read-only: the host does not
//! pass writes around a filter that may change data.
//!
//! The modules hold the functions of the contract, `wit/filter.wit`, which documents them. They act
//! on the request that is being served. They can only be called in a component, not in native
//! tests.
#![deny(missing_docs)]

#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod bindings;
mod describe;
mod export;
mod ops;
mod params;

pub mod host;

pub use bindings::host::rbdkit::filter::types::{
    BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, ExtentType, Recovery, Scope, Support,
    ThreadModel, Unexported,
};
pub use describe::{Description, Param};
pub use host::{buffer, client, clock, files, locks, log, maps, next, next_open, request, scratch, server, slots};
pub use ops::{
    Admission, Background, Caching, Connection, Features, Filter, Flushes, Info, Lifecycle, Mapping, Names, Reads,
    Threading, Trims, Writes, Zeroes,
};
pub use params::Params;

#[doc(hidden)]
pub use export::report_panics;

/// The names that most filters need, for one `use`.
pub mod prelude {
    pub use crate::host::buffer::PAYLOAD;
    pub use crate::{
        Admission, Background, BlockSizes, Caching, Capabilities, CommandFlags, Connection, Description, Errno,
        ExportEntry, Extent, ExtentType, Features, Filter, Flushes, Info, Lifecycle, Mapping, Names, Param, Params,
        Reads, Recovery, Scope, Support, ThreadModel, Threading, Trims, Unexported, Writes, Zeroes, buffer, client,
        clock, files, locks, log, maps, next, next_open, request, scratch, server, slots,
    };
}
