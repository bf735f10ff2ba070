//! Which layer takes which parameter: decided here, for `rbdkit` and for `rbdkit-filter`.
//!
//! * [`Parameter`], [`Target`] and [`TargetedParameter`] are the words of the command line.
//! * [`assign`] distributes them between the filters and the plugin by what these declare.
//! * [`nearest`] finds the name that a misspelt one was probably meant to be.
//!
//! Nothing here does I/O.
#![forbid(unsafe_code)]

mod assign;
mod error;
mod nearest;
mod word;

pub use assign::{Assignment, FilterSide, Missing, PluginSide, Stack, Undeclared, assign};
pub use error::AssignError;
pub use nearest::nearest;
pub use word::{Parameter, Target, TargetedParameter};
