//! Makes a component of a core WebAssembly module that carries a `component-type` section, as every wit-bindgen leaves it.
//!
//! A module that imports WASI's preview 1 (`wasi_snapshot_preview1`), as C libraries and Go's runtime do, is given the adapter that makes WASI
//! 0.2 of it. Only what the module uses of it becomes part of the component, and nothing where it uses none.
//!
//! A crate of its own, because the build needs it before the filters exist, and the host embeds the filters.
#![forbid(unsafe_code)]

mod gate;

use anyhow::{Context, Result};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::ComponentEncoder;

/// Encodes `module`, checks the result and returns the component.
///
/// # Errors
/// If it is not a core module, has no component type, imports what neither its type nor WASI names, or is not valid.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default()
        .module(module)
        .context("not a core module with a component type (was it built with wit-bindgen?)")?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)
        .context("the adapter of WASI's preview 1")?
        .validate(true)
        .encode()
        .context("cannot make a component of it")?;
    gate::put_before_exports(component)
}
