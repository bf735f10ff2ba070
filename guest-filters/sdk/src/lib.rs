//! What an rbdkit filter in Rust is written against.
//!
//! A filter is a type and the operations that it changes:
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
//!         Description::new("bright", env!("CARGO_PKG_VERSION"), "shows the start of a disk as 0xff")
//!             .thread_model(ThreadModel::Parallel)
//!             .param(Param::size("bright-limit").default("64k").help("How far."))
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
//! rbdkit_filter_sdk::export!(Bright: reads);
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` and make a component of it. [`export!`] takes the names of the groups, as they are
//! called in the contract; what is not named is settled by the host without entering the filter (see [`Unexported`]).
//!
//! The functions of the modules are those of the contract, and what they do is written there: `wit/filter.wit`. They act on the request
//! that is being served; outside of a component, in native tests, they cannot be called.
#![deny(missing_docs)]

#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod bindings;
mod describe;
mod glue;
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
pub use glue::{canonical, report_panics};

/// Everything that most filters need, to be imported at once.
pub mod prelude {
    pub use crate::host::buffer::PAYLOAD;
    pub use crate::{
        Admission, Background, BlockSizes, Caching, Capabilities, CommandFlags, Connection, Description, Errno,
        ExportEntry, Extent, ExtentType, Features, Filter, Flushes, Info, Lifecycle, Mapping, Names, Param, Params,
        Reads, Recovery, Scope, Support, ThreadModel, Threading, Trims, Unexported, Writes, Zeroes, buffer, client,
        clock, files, locks, log, maps, next, next_open, request, scratch, server, slots,
    };
}
