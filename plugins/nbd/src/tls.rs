//! TLS of the connection to the other server: what the parameters ask for.
//!
//! Certificates and keys are read when the plugin is configured, because a confined server cannot
//! open them later.

use std::path::{Path, PathBuf};

use rbdkit_plugin_api::ConfigError;
use rbdkit_tls::{CertificateFiles, ClientTls, KeyFile, KeyLogFile, Role, ServerIdentity, directory_with_certificates};

use crate::config::{Settings, Target};
use crate::tls_parameters::{TlsMode, TlsParameters};

/// The TLS of all connections to the server.
#[derive(Debug)]
pub(crate) enum Tls {
    Off,
    On(ClientTls),
    Require(ClientTls),
}

impl Tls {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// One line that names the file and says what is wrong.
    pub(crate) fn new(settings: &Settings) -> Result<Tls, ConfigError> {
        let mode = settings.tls.mode();
        if mode == TlsMode::Off {
            return Ok(Tls::Off);
        }
        let failed = |error: &dyn std::fmt::Display| ConfigError::new(format!("nbd: {error}"));
        let key_log = KeyLogFile::from_environment().map_err(|error| failed(&error))?;
        let client = match &settings.tls.psk {
            Some(path) => {
                let failed = |error: &dyn std::fmt::Display| {
                    ConfigError::new(format!("nbd: tls-psk={}: {error}", path.display()))
                };
                let keys = KeyFile::read(path).map_err(|error| failed(&error))?;
                ClientTls::with_keys(&keys, &user(&settings.tls)?, key_log).map_err(|error| failed(&error))?
            }
            None => {
                let directory = settings.tls.certificates.clone().or_else(default_directory);
                let named = |error: &dyn std::fmt::Display| match &directory {
                    Some(directory) => failed(&format!("tls-certificates={}: {error}", directory.display())),
                    None => failed(error),
                };
                let files = directory
                    .as_deref()
                    .map(|directory| CertificateFiles::of_directory(Role::Client, directory))
                    .transpose()
                    .map_err(|error| named(&error))?;
                ClientTls::with_certificates(files.as_ref(), &identity(settings), key_log)
                    .map_err(|error| named(&error))?
            }
        };
        Ok(if mode == TlsMode::Require { Tls::Require(client) } else { Tls::On(client) })
    }
}

/// Who the server has to be.
fn identity(settings: &Settings) -> ServerIdentity {
    match (settings.tls.verify, &settings.tls.hostname, &settings.target) {
        (Some(false), ..) => ServerIdentity::Unverified,
        (_, Some(name), _) => ServerIdentity::Name(name.clone()),
        (_, None, Target::Tcp { host, .. }) => ServerIdentity::Name(host.clone()),
        // The path of a socket says nothing of the server's name.
        _ => ServerIdentity::AnyName,
    }
}

/// The user whose key is used: the one given, or the one who runs the program, as in libnbd.
fn user(parameters: &TlsParameters) -> Result<String, ConfigError> {
    let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let user = parameters.username.clone().or_else(|| variable("LOGNAME")).or_else(|| variable("USER"));
    user.ok_or_else(|| ConfigError::new("nbd: tls-psk= needs tls-username=: the environment names no user"))
}

/// libnbd's default directory, if it has certificates.
fn default_directory() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME");
    directory_with_certificates("libnbd", Role::Client, root, home.as_deref().map(Path::new))
}
