//! Standard input, which belongs to the client if the server runs with `-s`.
//!
//! Plugins read scripts and passwords from standard input while they are configured. With `-s` it
//! is the client's connection, so whatever would read it has to fail instead of getting nothing.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

static BELONGS_TO_CLIENT: AtomicBool = AtomicBool::new(false);

/// Standard input is the client's connection, so nothing else may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BelongsToClient;

impl std::fmt::Display for BelongsToClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard input is the client's connection (-s), so it cannot be read for this")
    }
}

impl std::error::Error for BelongsToClient {}

/// Reserves standard input for the client. The program calls this before it configures a layer.
pub fn reserve_for_client() {
    BELONGS_TO_CLIENT.store(true, Ordering::Relaxed);
}

/// Whether standard input may be read. Call it before reading.
///
/// # Errors
/// It belongs to the client.
pub fn check() -> Result<(), BelongsToClient> {
    match BELONGS_TO_CLIENT.load(Ordering::Relaxed) {
        true => Err(BelongsToClient),
        false => Ok(()),
    }
}

/// Whether a file of this name may be read.
///
/// # Errors
/// The name is one of standard input's, and it belongs to the client.
pub fn check_path(path: &Path) -> Result<(), BelongsToClient> {
    if NAMES.iter().any(|name| path == Path::new(name)) { check() } else { Ok(()) }
}

/// The names of standard input in the file system.
const NAMES: [&str; 3] = ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// Opens a file for reading, unless [`check_path`] refuses it.
///
/// # Errors
/// Those of open(2), and [`BelongsToClient`].
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    check_path(path.as_ref()).map_err(io::Error::other)?;
    File::open(path)
}
