//! From the words of the command line to one checked [`Plan`].
//!
//! Everything that can be found wrong without loading anything is found here, so that nothing has been started when the user reads the
//! one line that says so. Options, their combinations and the rules by which a word is `key=value` or a bare value are nbdkit's.
//!
//! * [`options`] takes the command line apart, [`parse`] checks it and makes the plan.
//! * [`help`] writes the texts of `--help`.
//!
//! Nothing here does I/O, and nothing here knows the protocol, the server or the sandbox.
#![forbid(unsafe_code)]

pub mod help;
pub mod options;
mod plan;
mod words;

pub use plan::{Action, DebugFlag, FilterFault, FilterLimit, FilterSource, Inherited, Listen, LogTo, Plan, Sha256};
pub use words::program_name;

use std::ffi::OsString;

use rbdkit_plugin_api::ConfigError;

/// Makes a plan of the words after the program's name.
///
/// # Errors
/// One line that names the option and says what would be right.
pub fn parse(args: Vec<OsString>, inherited: Inherited) -> Result<Plan, ConfigError> {
    Plan::new(&options::take_apart(args)?, inherited)
}
