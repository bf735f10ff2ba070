//! Texts of a guest that go to a client.

use rbdkit_plugin_api::{Errno, Error, ExportEntry};

use crate::connection::bindings::host::types as wit;

/// Checks that the protocol can carry a name or description.
///
/// # Errors
/// EIO: it has more than 4096 bytes.
pub(crate) fn protocol_string(text: &str) -> Result<&str, Error> {
    match text.len() {
        0..=4096 => Ok(text),
        length => Err(Error::new(Errno::Eio, format!("a filter answered a text of {length} bytes (at most 4096)"))),
    }
}

/// Checks a list of exports that a guest made.
///
/// # Errors
/// EIO: a text in it is too long.
pub(crate) fn checked_exports(list: Vec<wit::ExportEntry>) -> Result<Vec<ExportEntry>, Error> {
    list.into_iter()
        .map(|entry| {
            protocol_string(&entry.name)?;
            protocol_string(entry.description.as_deref().unwrap_or_default())?;
            Ok(entry.into())
        })
        .collect()
}
