//! Secrets: passwords, cookies and header lines. They are bytes, and nothing prints them.
//!
//! Passwords and cookies come from the command line, a file, a descriptor, or the terminal.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use rbdkit_plugin_api::{ConfigError, Param, passwords};

/// Bytes of one line that nothing may print. They contain no null byte, carriage return or line
/// feed, so they cannot begin another line in the head of a request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(CString);

impl Secret {
    /// The bytes, unless they are more than one line.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the name of the parameter.
    pub(crate) fn new(bytes: &[u8]) -> Result<Secret, OneLineError> {
        match bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            true => Err(OneLineError),
            false => CString::new(bytes).map(Secret).map_err(|_| OneLineError),
        }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Bytes that would end the line of the head that they become part of.
#[derive(Debug, thiserror::Error)]
#[error("contains a line break or a null byte: it has to be one line")]
pub(crate) struct OneLineError;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The value of `password=` and its like: `VALUE`, `+FILENAME`, `-FD` or `-`. A carriage return at
/// the end of a line is not part of it.
///
/// # Errors
/// One line that names the parameter and never the secret.
pub(crate) fn read(param: Param<'_>) -> Result<Secret, ConfigError> {
    let wrong = |why: &dyn fmt::Display| ConfigError::new(format!("{}: {why}", param.key));
    let password = passwords::read(param.key, param.value).map_err(|error| wrong(&error))?;
    let mut line = password.bytes();
    if matches!(param.value.as_bytes(), [b'+' | b'-', ..]) {
        line = line.strip_suffix(b"\r").unwrap_or(line);
    }
    Secret::new(line).map_err(|error| wrong(&error))
}
