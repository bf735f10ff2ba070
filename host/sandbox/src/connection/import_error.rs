//! The error of an import.

use rbdkit_plugin_api::Errno;

/// Why an import failed whose answer is an errno. The generated bindings turn it into the guest's
/// answer or into a trap.
#[derive(Debug)]
pub(crate) enum ImportError {
    /// The answer for the guest.
    Errno(Errno),
    /// The guest's call ends here.
    Trap(wasmtime::Error),
}

impl From<Errno> for ImportError {
    fn from(errno: Errno) -> ImportError {
        ImportError::Errno(errno)
    }
}

impl From<wasmtime::Error> for ImportError {
    fn from(error: wasmtime::Error) -> ImportError {
        ImportError::Trap(error)
    }
}
