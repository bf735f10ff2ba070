//! The options about messages: `--log` and `-D`.

use std::ffi::OsStr;

use rbdkit_plugin_api::ConfigError;

use super::options::Options;
use super::values::error;

/// Where error messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error, and the system log once the process is in the background.
    Default,
    /// Standard error.
    Stderr,
    /// The system log.
    Syslog,
    /// Nowhere.
    Null,
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
        Some("stderr") => Ok(LogTo::Stderr),
        Some("syslog") => Ok(LogTo::Syslog),
        Some("null") => Ok(LogTo::Null),
        _ => Err(error(format!("--log={}: is not one of stderr, syslog, null", value.to_string_lossy()))),
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
