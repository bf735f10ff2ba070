//! The library for rbdkit filters that are written in Rust.
//!
//! A filter is a type, and implements the traits of the operations that it changes. This one XORs
//! every byte with a key, in both directions:
//!
//! ```
//! use rbdkit_filter_sdk::prelude::*;
//!
//! params! {
//!     /// The filter's parameters.
//!     pub struct Settings {
//!         /// The key, 0 to 255.
//!         key: u8 = 255,
//!     }
//! }
//!
//! /// The filter.
//! pub struct Xor {
//!     key: u8,
//! }
//!
//! impl Filter for Xor {
//!     type Params = Settings;
//!
//!     fn describe() -> Description {
//!         Description::new("xor", env!("CARGO_PKG_VERSION"), "exclusive-or with a key")
//!             .help("Changes every byte on its way in and out.")
//!             .thread_model(ThreadModel::Parallel)
//!             .recovery(Recovery::Stateless)
//!     }
//!
//!     fn configure(settings: Settings) -> Result<Self, String> {
//!         Ok(Xor { key: settings.key })
//!     }
//! }
//!
//! impl Reads for Xor {
//!     fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
//!         next::pread(offset, length, PAYLOAD, 0)?;
//!         Payload.xor(..length, &[self.key], 0);
//!         Ok(())
//!     }
//! }
//!
//! impl Writes for Xor {
//!     fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
//!         Payload.xor(..length, &[self.key], 0);
//!         next::pwrite(offset, length, PAYLOAD, 0, flags)
//!     }
//! }
//!
//! rbdkit_filter_sdk::export!(Xor: reads, writes);
//! # fn main() {
//! # use rbdkit_filter_sdk::testing::{Disk, Host};
//! # let host = Host::new(Disk::zeroes(16)).serve::<Xor>(&["key=32"]).unwrap();
//! # let client = host.connect().unwrap();
//! # client.pwrite(0, b"Hello", CommandFlags::empty()).unwrap();
//! # assert_eq!(client.pread(0, 6).unwrap(), b"Hello ");
//! # assert_eq!(host.disk()[..6], *b"hELLO\0");
//! # let wrong = Host::new(Disk::zeroes(16)).serve::<Xor>(&["key=256"]).err();
//! # assert_eq!(wrong.as_deref(), Some("xor: key=256: is not from 0 to 255"));
//! # }
//! ```
//!
//! * **Parameters** are a struct: see [`params`].
//! * **Data** stays in the host. [`Payload`](buffer::Payload) and [`Buffer`](buffer::Buffer) have
//!   methods that work on it there. Their method [`modify`](buffer::Bytes::modify) takes it into
//!   the guest, in pieces of 64 KiB.
//! * **Exports**: [`export!`] takes the names of the interfaces that the filter exports, as the
//!   contract calls them. A trait that is implemented and not named does not compile. For an
//!   interface that is not named the host acts without entering the filter (see [`Unexported`]).
//!   Without `writes` the example would make the disk read-only: the host does not pass writes
//!   around a filter that may change data.
//! * **The log**: [`error!`], [`warn!`], [`info!`] and [`debug!`] take the arguments of `format!`.
//! * **Tests**: [`testing`] is a simulated host, in which `cargo test` runs the filter natively.
//! * **Build** the crate as a `cdylib` with `rbdkit-filter build`, which compiles it for
//!   `wasm32-unknown-unknown` and makes a component of it.
//!
//! The other modules hold the functions of the contract, `wit/filter.wit`, which documents them.
//! They act on the request that is being served.
//!
//! # What the standard library does in a filter
//!
//! A filter has no operating system, only the host. Collections, strings, formatting, `Rc`,
//! `RefCell`, `Mutex` and atomics work as everywhere. The rest does not:
//!
//! * `println!`, `eprintln!` and `dbg!` write nowhere, without an error. Use [`info!`] or
//!   [`debug!`].
//! * `panic!`, `unwrap` of a `None` and an index out of range write their message to the log. The
//!   request fails with `Eio`, and the instance is dropped. `process::exit` and `process::abort` do
//!   the same without a message. Return an [`Errno`] instead.
//! * `Instant::now` and `SystemTime::now` panic. Use [`clock::monotonic`] and [`clock::realtime`].
//! * `thread::sleep` panics. Use [`server::sleep`].
//! * `thread::spawn` panics: an instance has one thread. The host runs many instances of a parallel
//!   filter, and its own workers fetch what [`next::prefetch`] and [`Background`] ask for.
//! * The functions of `fs`, `net` and `process::Command` return errors. The operator names files in
//!   parameters, and [`files`] reads them.
//! * `env::var` finds nothing, and `env::args` is empty. Use parameters.
//! * Random numbers come from [`clock::random`]. A `HashMap` works, with numbers that are not
//!   random.
//!
//! Memory that runs out fails the request in the same way, and the server's limit `memory` says how
//! much there is.
#![deny(missing_docs)]

#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod bindings;
mod bytes;
mod describe;
mod export;
mod log_macros;
mod ops;
#[allow(dead_code, reason = "the file is the server's, and a component needs only one function of it")]
mod units;

pub mod host;
pub mod image;
pub mod params;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use bindings::host::rbdkit::filter::types::{
    BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, ExtentType, Recovery, Scope, Support,
    ThreadModel, Unexported,
};
pub use describe::{Description, Param};
pub use host::{
    alarms, buffer, client, clock, counters, crypto, disks, files, gate, locks, log, maps, next, next_open, request,
    scratch, scripts, server, slots, storage,
};
pub use ops::{
    Admission, Background, Caching, Connection, Features, Filter, Flushes, Info, Lifecycle, Mapping, Names, OnAlarm,
    OnConnection, OnControl, OnWatch, Reads, Threading, Trims, Wish, Wishes, Writes, Zeroes,
};
pub use params::{Parameters, Params};

#[doc(hidden)]
pub use export::{names as __names, report_panics};
#[doc(hidden)]
pub use log_macros::write as __log;

/// The names that most filters need, for one `use`.
pub mod prelude {
    pub use crate::host::buffer::{Buffer, PAYLOAD, Payload};
    pub use crate::params::{
        AppendFile, BoolOrWatch, Choice, Control, CurrentFile, Descriptor, Disk, Parameters, Params, Percent,
        Probability, Process, ReadFile, Script, Secret, Size, StorageFile, StringOrScript, Watch, WriteFile,
    };
    pub use crate::{
        Admission, Background, BlockSizes, Caching, Capabilities, CommandFlags, Connection, Description, Errno,
        ExportEntry, Extent, ExtentType, Features, Filter, Flushes, Info, Lifecycle, Mapping, Names, OnAlarm,
        OnConnection, OnControl, OnWatch, Param, Reads, Recovery, Scope, Support, ThreadModel, Threading, Trims,
        Unexported, Wish, Wishes, Writes, Zeroes, alarms, buffer, client, clock, counters, crypto, debug, disks, error,
        files, gate, info, locks, log, maps, next, next_open, params, request, scratch, scripts, server, slots,
        storage, warn,
    };
}
