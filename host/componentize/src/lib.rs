//! Makes a component from a core WebAssembly module with a `component-type` section, which every
//! wit-bindgen adds.
//!
//! C libraries and Go's runtime import WASI's preview 1 (`wasi_snapshot_preview1`). Such a module
//! gets an adapter that translates preview 1 to WASI 0.2: a module of Go its own one, all others
//! that of wasmtime. Only the functions that the module uses become part of the component.
//!
//! It is a crate of its own because the build needs it before the filters exist, and the host
//! embeds the filters.
#![forbid(unsafe_code)]

mod error;
mod gate;
mod go;

pub use error::Error;

use std::borrow::Cow;

use error::Result;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::ComponentEncoder;

/// Encodes `module`, checks the result and returns the component.
///
/// # Errors
/// If the input is not a core module, has no component type, imports what neither its type nor WASI
/// names, or is not valid.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let (module, adapter) = match go::made(module) {
        true => (Cow::Owned(go::with_flag(module)?), Cow::Owned(go::adapter()?)),
        false => (Cow::Borrowed(module), Cow::Borrowed(WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)),
    };
    let component = ComponentEncoder::default()
        .module(&module)
        .map_err(|error| Error::NotAModule(error.into()))?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, &adapter)
        .map_err(|error| Error::Adapter(error.into()))?
        .validate(true)
        .encode()
        .map_err(|error| Error::Encode(error.into()))?;
    gate::put_before_exports(component)
}
