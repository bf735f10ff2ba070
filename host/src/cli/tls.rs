//! The options of TLS.

use std::path::PathBuf;

use rbdkit_plugin_api::{ConfigError, units};
use rbdkit_tls::Priority;

use super::options::Options;
use super::values::{error, path, text};

/// What `--tls` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Nothing: clients may use TLS if there are certificates or keys.
    Default,
    /// Clients cannot use TLS.
    Off,
    /// Clients may use TLS.
    On,
    /// Clients have to use TLS.
    Require,
}

/// The options of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPlan {
    /// `--tls`.
    pub mode: TlsMode,
    /// `--tls-certificates`.
    pub certificates: Option<PathBuf>,
    /// `--tls-psk`.
    pub psk: Option<PathBuf>,
    /// `--tls-verify-peer`.
    pub verify_peer: bool,
    /// `--tls-priority`.
    pub priority: Priority,
}

/// The options of TLS.
///
/// # Errors
/// One line that names the option and says what would be right.
pub(super) fn tls(given: &Options) -> Result<TlsPlan, ConfigError> {
    let mode = match given.tls.as_ref().map(|mode| mode.to_string_lossy()) {
        None => TlsMode::Default,
        Some(mode) if mode == "require" => TlsMode::Require,
        // nbdkit takes every spelling of a truth value.
        Some(mode) => match units::parse_bool(&mode) {
            Ok(true) => TlsMode::On,
            Ok(false) => TlsMode::Off,
            Err(_) => return Err(error(format!("--tls={mode}: is not one of off, on, require"))),
        },
    };
    if given.oldstyle && mode == TlsMode::Require {
        return Err(error("--oldstyle and --tls=require cannot be used together: oldstyle has no TLS"));
    }
    let file =
        |option: &str, given: &Option<std::ffi::OsString>| given.as_ref().map(|value| path(option, value)).transpose();
    let priority = match &given.tls_priority {
        None => Priority::default(),
        Some(value) => {
            let value = text("--tls-priority", value)?;
            Priority::parse(&value).map_err(|wrong| error(format!("--tls-priority: {wrong}")))?
        }
    };
    Ok(TlsPlan {
        mode,
        certificates: file("--tls-certificates", &given.tls_certificates)?,
        psk: file("--tls-psk", &given.tls_psk)?,
        verify_peer: given.tls_verify_peer,
        priority,
    })
}
