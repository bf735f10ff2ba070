//! What the plugins share whose disk is computed and not stored: zero, ones, full, random,
//! sparse-random and example1.
//!
//! Each plugin says what its disk contains ([`Content`]) and which parameters it takes
//! ([`Synthetic`]). This library makes a [`Plugin`](rbdkit_plugin_api::Plugin) of that.
//!
//! | module | subject |
//! |---|---|
//! | [`content`] | a disk that is computed, as a handle for all connections |
//! | [`plugin`] | parameters and life of a plugin with such a disk |
//! | [`generator`] | the random numbers of nbdkit's test disks |
//! | [`seed`] | the parameter `seed=` |
//! | [`check`] | writes that have to equal what is there |
#![forbid(unsafe_code)]

mod check;
mod content;
mod generator;
mod plugin;
mod seed;

pub use check::check_written;
pub use content::{Content, SyntheticDisk};
pub use generator::Generator;
pub use plugin::{Plan, Synthetic, required_size};
pub use seed::Seed;
