//! rbdkit: an NBD server whose filters are sandboxed WebAssembly components. See ARCHITECTURE.md for the map.
pub mod chain;
pub mod cli;
pub mod registry;
pub mod wasm;
