//! Values of options: texts, names of files and numbers.

use std::ffi::OsStr;
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
    use super::*;

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
