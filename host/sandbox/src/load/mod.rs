//! From a file to a checked, compiled component.

pub(crate) mod cache;
pub(crate) mod compile;
pub(crate) mod component;
pub(crate) mod describe;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod footprint;
pub(crate) mod mismatch;
pub(crate) mod precompiled;
pub(crate) mod replacement;
mod strip;
