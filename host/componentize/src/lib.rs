//! Makes a component of a core WebAssembly module that carries a `component-type` section, as every wit-bindgen leaves it.
//!
//! A crate of its own, because the build needs it before the filters exist, and the host embeds the filters.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use wit_component::ComponentEncoder;

/// Encodes `module`, checks the result and returns the component.
///
/// # Errors
/// If it is not a core module, has no component type, imports what its type does not name, or is not valid.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .module(module)
        .context("not a core module with a component type (was it built with wit-bindgen?)")?
        .validate(true)
        .encode()
        .context("cannot make a component of it")
}
