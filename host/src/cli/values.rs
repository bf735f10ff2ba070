//! Values of options: texts, names of files and numbers.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use rbdkit_plugin_api::{ConfigError, units};

/// An error of one line.
pub(super) fn error(message: impl Into<String>) -> ConfigError {
    ConfigError::new(message)
}

/// A value that has to be UTF-8.
pub(super) fn text(option: &str, value: &OsStr) -> Result<String, ConfigError> {
    let text =
        value.to_str().ok_or_else(|| error(format!("{option}: '{}' is not UTF-8 text", value.to_string_lossy())))?;
    Ok(text.to_string())
}

/// The longest name of an export, in bytes: the protocol's limit on strings.
const MAX_EXPORT_NAME: usize = 4096;

/// The name of an export. Clients could ask for no other.
pub(super) fn export_name(option: &str, value: &OsStr) -> Result<OsString, ConfigError> {
    let name = text(option, value)?;
    if name.len() > MAX_EXPORT_NAME {
        return Err(error(format!(
            "{option}: the name is too long: {} bytes, the protocol allows {MAX_EXPORT_NAME}",
            name.len()
        )));
    }
    Ok(name.into())
}

/// The name of a file.
pub(super) fn path(option: &str, value: &OsStr) -> Result<PathBuf, ConfigError> {
    if value.is_empty() {
        return Err(error(format!("{option}: the name of the file is empty")));
    }
    Ok(PathBuf::from(value))
}

/// A whole number as C writes it: decimal, `0x` hexadecimal or `0` octal.
pub(super) fn whole_number(option: &str, text: &OsStr, most: u64) -> Result<u64, ConfigError> {
    let lossy = text.to_string_lossy();
    units::parse_whole(&lossy, most).map_err(|wrong| error(format!("{option}: '{lossy}' {wrong}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_name_that_no_client_could_ask_for_is_not_an_exports() {
        let longest = "x".repeat(4096);
        for name in ["", "disk", "a b/é?", longest.as_str()] {
            assert_eq!(export_name("-e", OsStr::new(name)).unwrap(), name);
        }
        let message = |name: &[u8]| export_name("-e", OsStr::from_bytes(name)).unwrap_err().to_string();
        assert_eq!(message(b"a\xff"), "-e: 'a\u{fffd}' is not UTF-8 text");
        assert_eq!(message(&[b'x'; 4097]), "-e: the name is too long: 4097 bytes, the protocol allows 4096");
    }

    #[test]
    fn numbers_are_written_as_in_c() {
        for (text, number) in [("0", 0), ("16", 16), ("0x1F", 31), ("017", 15)] {
            assert_eq!(whole_number("-t", OsStr::new(text), 100), Ok(number), "{text}");
        }
        for text in ["", "x", "-1", "+-1", "0x", "0x-1", "08", "101", "1 "] {
            let message = whole_number("-t", OsStr::new(text), 100).unwrap_err().to_string();
            assert_eq!(message, format!("-t: '{text}' is not a whole number from 0 to 100"));
        }
    }
}
