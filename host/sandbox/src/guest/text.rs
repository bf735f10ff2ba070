//! Texts of a guest that go to a client.

use rbdkit_plugin_api::{Errno, Error};

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
