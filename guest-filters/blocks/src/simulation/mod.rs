//! A host in memory that serves the requests of several clients in random order.
//!
//! Each client is a thread, but only one runs at a time. Whenever a request uses the host, a random
//! choice says which client continues. So requests interleave at every step, and the seed of the
//! random numbers repeats a run. Long transfers are done in pieces, with other clients in between.
//! Next fails, scratch fills up, and requests trap, as often as the settings say.
//!
//! The SDK's `testing` is another simulated host. It serves one request after another, so that a
//! test sees what a filter's exports do. This one exists because requests interleave here at every
//! step. A thread stops in the middle of a request for that, and the algorithms run on the trait
//! `Host`, without the exports.
//!
//! A model knows which values each byte may have when a client reads it (see `model.rs`).
#![allow(missing_docs)] // Only tests use this, and the names say it.

mod call;
mod model;
mod random;
mod request;
mod run;
mod settings;
mod shared;
mod world;

pub use call::Call;
pub use random::Rng;
pub use request::{Request, any_request};
pub use run::{Simulation, Subject};
pub use settings::{Settings, SimError, Stats, Writes, seeds};
