//! The options about messages: `--log`, `--name` and `-D`.

use std::ffi::OsStr;
use std::path::PathBuf;

use rbdkit_plugin_api::ConfigError;

use super::options::Options;
use super::values::{error, text, whole_number};

/// Where error messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error, and the system log once the process is in the background.
    Default,
    /// Standard error.
    Stderr,
    /// The system log.
    Syslog,
    /// Nowhere.
    Null,
    /// The end of this file, which is made if it does not exist.
    File(PathBuf),
    /// A file descriptor that the caller passed on.
    Descriptor(i32),
}

/// `-D NAME.FLAG=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugFlag {
    /// A plugin, a filter or `nbdkit`.
    pub name: String,
    /// The flag, dots included.
    pub flag: String,
    /// Its value.
    pub value: i64,
}

pub(super) fn log(given: &Options) -> Result<LogTo, ConfigError> {
    let Some(value) = &given.log else {
        return Ok(LogTo::Default);
    };
    match value.to_str() {
        Some("default") => Ok(LogTo::Default),
        Some("stderr") => Ok(LogTo::Stderr),
        Some("syslog") => Ok(LogTo::Syslog),
        Some("null") => Ok(LogTo::Null),
        _ if value.as_encoded_bytes().starts_with(b"/") => Ok(LogTo::File(value.into())),
        Some(other) if other.starts_with("fd:") => descriptor(&other["fd:".len()..]),
        _ => {
            let shown = value.to_string_lossy();
            Err(error(format!("--log={shown}: is not one of default, stderr, syslog, null, /PATH, fd:N")))
        }
    }
}

fn descriptor(number: &str) -> Result<LogTo, ConfigError> {
    let number = whole_number("--log=fd:N", OsStr::new(number), i32::MAX as u64)?;
    Ok(LogTo::Descriptor(i32::try_from(number).unwrap_or(i32::MAX)))
}

/// The longest name, in bytes. It is repeated in each message.
const LONGEST_NAME: usize = 64;

/// The name in messages.
pub(super) fn name(given: &Options) -> Result<Option<String>, ConfigError> {
    let Some(value) = &given.name else { return Ok(None) };
    let name = text("--name", value)?;
    match name.len() {
        1..=LONGEST_NAME => Ok(Some(name)),
        length => Err(error(format!("--name: the name has {length} bytes, it has to have 1 to {LONGEST_NAME}"))),
    }
}

pub(super) fn debug_flag(value: &OsStr) -> Result<DebugFlag, ConfigError> {
    let shown = value.to_string_lossy();
    let wrong = || error(format!("-D {shown}: must have the form NAME.FLAG=N, N a whole number"));
    let (flag, number) = shown.split_once('=').ok_or_else(wrong)?;
    let (name, flag) = flag.split_once('.').ok_or_else(wrong)?;
    if name.is_empty() || flag.is_empty() {
        return Err(wrong());
    }
    let value = number.parse().map_err(|_| wrong())?;
    Ok(DebugFlag { name: name.to_string(), flag: flag.to_string(), value })
}
