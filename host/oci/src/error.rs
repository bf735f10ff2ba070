//! [`Error`]: why a component cannot be pushed or pulled.

use std::io;
use std::path::PathBuf;

use rbdkit_plugin_api::text::one_line_within;

/// How many bytes of a registry's own words are shown.
const SHOWN: usize = 200;

/// Why a component cannot be pushed or pulled. Each is one line without control characters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that is no reference.
    #[error("{0}")]
    Reference(String),
    /// The registry cannot be reached, refuses, or answers with something else than what was asked
    /// for.
    #[error("{0}")]
    Registry(String),
    /// What the registry sent is not a component, or not the one that was asked for.
    #[error("{0}")]
    Content(String),
    /// The component is not signed as it has to be.
    #[error("{0}")]
    Signature(String),
    /// A file of keys or credentials.
    #[error("{}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The child process that talks to the registry.
    #[error("{0}")]
    Child(String),
}

impl Error {
    pub(crate) fn registry(why: impl Into<String>) -> Error {
        Error::Registry(why.into())
    }

    pub(crate) fn content(why: impl Into<String>) -> Error {
        Error::Content(why.into())
    }

    pub(crate) fn child(doing: &str) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.to_owned();
        move |error| Error::Child(format!("{doing}: {}", rbdkit_plugin_api::text::plain(&error)))
    }
}

/// A registry's own words, short and on one line.
pub(crate) fn shown(text: &str) -> String {
    one_line_within(text, SHOWN)
}
