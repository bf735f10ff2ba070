//! Filters in a sandbox: the only place that names wasmtime.
pub mod state;
