//! Errors of system calls, and of the descriptors that `fd=` and `dirfd=` name.

use rbdkit_plugin_api::{Errno, Error};
use rustix::io::Errno as Raw;

/// The error of a request for a system call that failed; `what` says which.
pub(crate) fn failed(what: &str, error: Raw) -> Error {
    Error::new(Errno::from_raw(error.raw_os_error()), format!("{what}: {error}"))
}

/// Why the descriptor of a parameter cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error("is not an open descriptor that was inherited")]
    NotInherited,
    #[error("{0}")]
    System(#[from] Raw),
    #[error("is neither a regular file nor a block device")]
    NotAFile,
    #[error("is not a directory")]
    NotADirectory,
    #[error("is open for appending, so writes would go to the wrong place")]
    Appends,
    #[error("is open for writing only; it has to be readable")]
    WriteOnly,
}
