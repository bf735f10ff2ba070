//! Disks that a shell command makes when a client connects. The plugins tmpdisk and ondemand share
//! it.
//!
//! The server is confined by then, and may neither start the command nor create a file. A helper
//! process does both ([`rbdkit_launcher`]). It makes a private directory, runs the command with
//! `$disk` in it, opens the disk, and sends the open file to the server. The directory goes when
//! the command has ended, also if the server is killed.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | the parameters, which become shell variables |
//! | [`script`] | the script that runs |
//! | [`create`] | runs it in the helper, and what the server does meanwhile |
//! | [`answer`] | what the helper sends |
#![forbid(unsafe_code)]

mod answer;
mod config;
mod create;
mod script;

pub use config::{CommandConfig, OTHER_KEYS};
pub use create::{Created, begin, create};
