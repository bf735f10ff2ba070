//! A simulated host, in which a filter's operations run in native tests.
//!
//! ```
//! use rbdkit_filter_sdk::prelude::*;
//! use rbdkit_filter_sdk::testing::{Disk, Host};
//!
//! /// Counts the reads of a connection in a slot of the host.
//! struct Counter;
//!
//! impl Filter for Counter {
//!     type Params = ();
//!
//!     fn describe() -> Description {
//!         Description::new("counter", "1", "counts reads").transparent()
//!     }
//!
//!     fn configure(_: ()) -> Result<Self, String> {
//!         Ok(Counter)
//!     }
//! }
//!
//! impl Reads for Counter {
//!     fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
//!         let reads = slots::add(Scope::Connection, 0, 1);
//!         info!("read {reads}");
//!         next::pread(offset, length, PAYLOAD, 0)
//!     }
//! }
//!
//! rbdkit_filter_sdk::export!(Counter: reads);
//!
//! # fn main() {
//! let host = Host::new(Disk::new(*b"hello, disk")).serve::<Counter>(&[]).unwrap();
//! let client = host.connect().unwrap();
//! assert_eq!(client.pread(7, 4).unwrap(), b"disk");
//! assert_eq!(host.take_log(), ["info: read 1"]);
//! assert_eq!(host.take_calls(), ["open", "pread 7 4"]);
//! host.fail_next("pread", Errno::Eio);
//! assert_eq!(client.pread(0, 1), Err(Errno::Eio));
//! # }
//! ```
//!
//! * [`Disk`] is the layer below, in memory.
//! * [`Host::serve`] checks the parameters as the server does, in the form in which a user writes
//!   them, and configures the filter.
//! * [`Client`] sends requests to the filter's layer. What the filter does not export, the
//!   simulated host does as the contract says. [`Served::client`] makes one of which the filter
//!   learns what the test says: its address, credentials, certificate and security context. Several
//!   clients share the state that the filter keeps in the host, and each has its own of the scope
//!   `connection`.
//! * [`Served`] shows what the filter did: the bytes below, its lines in the log, its calls of the
//!   layer below, and whether it asked the server to end. It makes calls fail, and moves the time,
//!   at which alarms sound.
//! * [`Served::restart`] loses the instances, and [`Served::reload`] loads another version.
//! * [`Record`] is what `rbdkit --record` wrote, and [`Host::replay`] runs it.
//!
//! One call runs at a time, so a lock is always free and no two requests interleave. A filter with
//! the thread model `parallel` has two instances that serve alternately, so that a test finds state
//! that it keeps in its memory. `rbdkit-filter check` tests what happens when requests run at once.
//!
//! The ciphers and keys are not real: [`crypto`] says what stands for them.
//!
//! What would trap in a component panics here: the test fails and says why.

mod call;
mod client;
mod connecting;
pub mod crypto;
mod digest;
mod disk;
mod events;
mod exported;
mod extents;
mod facts;
mod host;
pub(crate) mod imports;
mod offers;
mod parameters;
mod ranges;
mod record;
mod recorded_below;
mod restart;
mod shared_state;
mod world;

pub use client::Client;
pub use connecting::Connecting;
pub use disk::Disk;
#[doc(hidden)]
pub use exported::Exported;
pub use host::{Host, Served, Stopped};
pub use record::{Record, Replayed};
