//! Files without a name: nothing is left of them when the server ends, however it ends.

use std::fs::File;
use std::io;

use rbdkit_plugin_api::temporary;

/// An empty file in `$TMPDIR`, by default `/var/tmp`.
///
/// # Errors
/// Those of the system, with the name of the directory.
pub fn temporary_file() -> io::Result<File> {
    let directory = temporary::large_directory()?;
    tempfile::tempfile_in(&directory)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
}
