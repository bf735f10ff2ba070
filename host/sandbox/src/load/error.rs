//! Errors of loading a component.

use std::io;

use rbdkit_plugin_api::text::{one_line_within, plain};

use crate::connection::log::CAUSE;

/// Why a component cannot be used. The text is one line without the component's name.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its file cannot be opened or read.
    #[error("{}", plain(.0))]
    File(io::Error),
    /// It is not a component, or is too large.
    #[error("{0}")]
    NotComponent(String),
    /// The compiler refuses it, or reaches its limit of time or memory.
    #[error("{0}")]
    Compiler(String),
    /// It imports something that is not granted, or lacks something that a filter has to export.
    #[error("{0}")]
    Contract(String),
    /// It describes itself in a way that is not allowed.
    #[error("{0}")]
    Description(String),
    /// It failed when it was asked to describe itself.
    #[error("{0}")]
    Guest(String),
    /// It cannot replace the version that is running.
    #[error("{0}")]
    Replacement(String),
}

impl LoadError {
    /// A function of the component differs from the contract's.
    pub(crate) fn mismatch(why: &str) -> LoadError {
        LoadError::Contract(format!("it does not fit this host's rbdkit:filter@0.1.0: {why}"))
    }
}

/// An error of wasmtime's with its causes, as one line.
pub(crate) fn one_line(error: &wasmtime::Error) -> String {
    one_line_within(&format!("{error:#}").replace('\n', " "), CAUSE)
}
