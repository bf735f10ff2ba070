//! Why no component can be made of a module.

use std::num::TryFromIntError;

use wasm_encoder::reencode;
use wasmparser::BinaryReaderError;

/// An error of the encoder, which has no type of its own.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why no component can be made of a module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is not a core module, or it does not say which component it is to become.
    #[error("not a core module with a component type (was it built with wit-bindgen?)")]
    NotAModule(#[source] Source),
    /// The adapter of WASI's preview 1 cannot be used.
    #[error("the adapter of WASI's preview 1")]
    Adapter(#[source] Source),
    /// The module imports what neither its component type nor WASI names, or the result is not
    /// valid.
    #[error("cannot make a component of it")]
    Encode(#[source] Source),
    /// The component is not valid with its exports behind a gate.
    #[error("the component with its exports behind a gate")]
    Gate(#[source] BinaryReaderError),
    /// The component contradicts itself.
    #[error("{0}")]
    Malformed(String),
    /// The component cannot be read.
    #[error(transparent)]
    Read(#[from] BinaryReaderError),
    /// A part of the component cannot be written again.
    #[error(transparent)]
    Rewrite(#[from] reencode::Error),
    /// A size or an index is too large.
    #[error(transparent)]
    TooLarge(#[from] TryFromIntError),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
