//! From the words of the command line to one checked [`Plan`].
//!
//! Every mistake that can be found without loading anything is found here. So nothing has been
//! started yet when the user reads the one line about it. Options, their combinations and the rule
//! that makes a word `key=value` or a bare value are nbdkit's.
//!
//! * [`options`] takes the command line apart, [`plan`] checks it. What belongs to one subject is
//!   in [`listen`], [`filters`] and [`messages`].
//! * [`help`] writes the texts of `--help`.
//!
//! Nothing here does I/O, and nothing here knows the protocol, the server or the sandbox.
#![forbid(unsafe_code)]

mod filters;
pub mod help;
mod listen;
mod messages;
mod options;
mod plan;
mod program_name;
mod values;

pub use filters::{FilterFault, FilterLimit, FilterSource, Sha256};
pub use listen::{Families, Inherited, Listen};
pub use messages::LogTo;
pub use plan::{Action, Plan, parse};
pub use program_name::program_name;
