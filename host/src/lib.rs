//! rbdkit: an NBD server whose filters are sandboxed WebAssembly components. See ARCHITECTURE.md for the map.
pub mod chain;
pub mod cli;
pub mod nbd;
pub mod rate;
pub mod registry;
pub mod server;
pub mod startup;
pub mod text;
pub mod wall;
pub mod wasm;
