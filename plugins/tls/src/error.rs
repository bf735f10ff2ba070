//! What can be wrong with TLS: with the files, or with the other end.

use std::io;

use rbdkit_plugin_api::text::is_hidden;

/// The longest message that comes from a library, in characters. Some of it may come from the other
/// end.
const MAX_MESSAGE: usize = 200;

/// One line that says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    /// A line of our own.
    pub(crate) fn new(line: impl Into<String>) -> TlsError {
        TlsError(line.into())
    }

    /// What a library says, cut and without control characters.
    pub(crate) fn of_library(said: &impl std::fmt::Display) -> TlsError {
        let shown = said.to_string().chars().take(MAX_MESSAGE).map(|c| if is_hidden(c) { '?' } else { c }).collect();
        TlsError(shown)
    }
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}
