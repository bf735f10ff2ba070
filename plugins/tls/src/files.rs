//! Reading a file that is not too long.

use std::io;
use std::path::Path;

/// The longest file, in bytes. A revocation list with 10,000 entries has 400 KB.
const MAX_FILE: u64 = 16 << 20;

/// The content of a file that is not longer than [`MAX_FILE`].
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    match content.len() as u64 > MAX_FILE {
        true => Err(io::Error::other("is longer than 16 MiB")),
        false => Ok(content),
    }
}
