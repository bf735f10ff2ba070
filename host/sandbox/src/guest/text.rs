//! Texts of a guest that go to a client.

use rbdkit_plugin_api::{Errno, Error, ExportEntry};

use crate::connection::bindings::host::types as wit;

/// A name or description as the protocol can carry it: at most 4096 bytes.
pub(crate) fn protocol_string(text: &str) -> Result<&str, Error> {
    match text.len() {
        0..=4096 => Ok(text),
        length => Err(Error::new(Errno::Eio, format!("a filter answered a text of {length} bytes (at most 4096)"))),
    }
}

/// A list of exports as a guest made it.
pub(crate) fn checked_exports(list: Vec<wit::ExportEntry>) -> Result<Vec<ExportEntry>, Error> {
    list.into_iter()
        .map(|entry| {
            protocol_string(&entry.name)?;
            protocol_string(entry.description.as_deref().unwrap_or_default())?;
            Ok(entry.into())
        })
        .collect()
}
