//! Records of `rbdkit --record`: what real clients did through a filter, as a native test.
//!
//! ```no_run
//! # use rbdkit_filter_sdk::prelude::*;
//! # struct Mine;
//! # impl Filter for Mine {
//! #     type Params = ();
//! #     fn describe() -> Description { Description::new("mine", "1", "mine").transparent() }
//! #     fn configure(_: ()) -> Result<Self, String> { Ok(Mine) }
//! # }
//! # impl Flushes for Mine {
//! #     fn flush(&self) -> Result<(), Errno> { next::flush() }
//! # }
//! # rbdkit_filter_sdk::export!(Mine: flushes);
//! # fn main() {
//! use rbdkit_filter_sdk::testing::{Host, Record};
//!
//! let record = Record::read("tests/session.rec").unwrap();
//! let host = Host::from_record(&record).unwrap();
//! host.replay::<Mine>(&record, &[]).unwrap().assert_same();
//! # }
//! ```
//!
//! The record needs payloads (`--record-payloads`). The calls run one after another, in the order
//! in which they began. What two calls did to the same bytes at the same time is not compared.
//! `rbdkit-filter replay` lets calls overlap as they did, and takes records and disks of any size.

mod decode;
mod disk;
mod entry;
mod read;
mod replay;

pub use entry::Record;
pub use replay::Replayed;
