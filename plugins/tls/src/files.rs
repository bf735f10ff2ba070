//! Reading a file that is not too long.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest file, in bytes. A revocation list with 10,000 entries has 400 KB.
const MAX_FILE: u64 = 16 << 20;

/// What is left of an open file: certificates, keys or revocations.
///
/// # Errors
/// The file cannot be read, or is longer than 16 MiB.
pub fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content)?;
    match content.len() as u64 > MAX_FILE {
        true => Err(io::Error::other("is longer than 16 MiB")),
        false => Ok(content),
    }
}

/// [`read_bounded`] of the file with this name.
pub(crate) fn read_path(path: &Path) -> io::Result<Vec<u8>> {
    read_bounded(File::open(path)?)
}
