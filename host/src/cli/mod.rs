//! From the words of the command line to one checked [`Plan`].
//!
//! This finds every mistake that can be found without loading anything. So nothing has been started
//! yet when the user reads about it. Options, their combinations and the rule that makes a word
//! `key=value` or a bare value are nbdkit's.
//!
//! * [`options`] parses the command line, [`plan`] checks it. [`chain`] has what names the layers
//!   of a chain. [`listen`], [`filters`], [`messages`], [`parameter_file`], [`record`] and [`tls`]
//!   each have one subject.
//! * [`help`] writes the texts of `--help`.
//!
//! Nothing here does I/O or uses the protocol, the server or the sandbox.
#![forbid(unsafe_code)]

mod chain;
mod filters;
pub mod help;
mod listen;
mod messages;
mod options;
mod parameter_file;
mod plan;
mod program_name;
mod record;
mod tls;
mod values;

pub use chain::{ChainPlan, disk};
pub use filters::{FilterAllow, FilterFault, FilterLimit, FilterSource, RegistryOptions, Sha256};
pub use listen::{Families, Inherited, Listen};
pub use messages::LogTo;
pub use parameter_file::MAX_BYTES as MAX_PARAMETER_BYTES;
pub use plan::{Action, HandshakeStyle, Plan, parse, without_plugin};
pub use program_name::program_name;
pub use record::RecordOption;
pub use tls::{TlsMode, TlsPlan};
