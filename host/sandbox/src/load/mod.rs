//! From a file to a checked, compiled component.

pub(crate) mod cache;
pub(crate) mod compile;
pub(crate) mod component;
pub(crate) mod describe;
pub(crate) mod entropy;
pub(crate) mod file;
