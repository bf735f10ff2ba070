//! Decides which layer takes which parameter, for `rbdkit` and for `rbdkit-filter`.
//!
//! * [`Parameter`], [`Target`] and [`TargetedParameter`] are the words of the command line.
//! * [`assign`] distributes them among the filters and the plugin by their declarations.
//! * [`nearest`] finds the name that a misspelt one probably means.
//!
//! Nothing here does I/O.
#![forbid(unsafe_code)]

mod assign;
mod error;
mod word;

pub use assign::{Assignment, FilterSide, Missing, PluginSide, Stack, Undeclared, assign};
pub use error::AssignError;
pub use rbdkit_plugin_api::nearest;
pub use word::{Parameter, Target, TargetedParameter};
