//! Export names and names of files.

use rbdkit_plugin_api::{Errno, Error, Result};

/// The file of the default export.
pub(crate) const DEFAULT: &str = "default";

/// The longest name of a file, in bytes.
const MAX_NAME: usize = 255;

/// Characters that no name has. A dot is left to files that a command hides in the directory.
const FORBIDDEN: [char; 4] = ['.', '/', ':', '\0'];

/// Whether a file of this name is a disk.
pub(crate) fn is_disk(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(FORBIDDEN)
}

/// The name of the file for an export name.
///
/// # Errors
/// EINVAL: no file may have that name.
pub(crate) fn file_name(exportname: &str) -> Result<&str> {
    let name = if exportname.is_empty() { DEFAULT } else { exportname };
    match is_disk(name) {
        true => Ok(name),
        false => Err(Error::new(
            Errno::Einval,
            "ondemand: an export name has at most 255 bytes, and none of the characters '.', '/' and ':'",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_directory() {
        assert_eq!(file_name("").unwrap(), "default");
        for name in ["a", "a b", "ä'\"$(id)", &"x".repeat(255)] {
            assert_eq!(file_name(name).unwrap(), name);
        }
        for name in [".", "..", "a/b", "/etc/passwd", "a:b", "a.img", "a\0b", &"x".repeat(256)] {
            assert_eq!(file_name(name).unwrap_err().errno(), Errno::Einval, "{name}");
        }
    }
}
