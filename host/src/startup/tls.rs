//! TLS at the start: which certificates or keys, and reading certificates again on SIGHUP.
//!
//! Everything is read before the server confines itself, and before it changes its user. A confined
//! server cannot open the directory of certificates again. So a helper process, which has kept the
//! rights of the start, opens the four files in it by name, and no others.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbdkit_launcher::{Open, OpenFor, Opener};
use rbdkit_plugin_api::ConfigError;
use rbdkit_plugin_api::text::plain;
use rbdkit_server::TlsOptions;
use rbdkit_tls::{CertificateFiles, ClientCertificates, KeyFile, KeyLogFile, Role, ServerTls, read_bounded};
use rustix::fs::{Mode, OFlags, openat};
use tokio::sync::Notify;

use super::uri;
use crate::cli::{TlsMode, TlsPlan};

/// The helper's function, by its name.
pub const OPEN: (&str, Open) = ("tls", open);

/// The TLS of a server that starts.
pub struct Tls {
    options: TlsOptions,
    uri: TlsUri,
    /// None with pre-shared keys, which are not read again.
    certificates: Option<Certificates>,
}

/// What the URI says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsUri {
    /// Clients have to use TLS.
    required: bool,
    /// The only user there is.
    user: Option<String>,
    /// A parameter, with its path.
    file: Option<(&'static str, PathBuf)>,
}

/// The directory, as it was opened at the start.
struct Certificates {
    path: PathBuf,
    directory: OwnedFd,
    opener: Opener,
}

impl Tls {
    /// Reads what the options name. None: the server has no TLS.
    ///
    /// # Errors
    /// One line that names the option or the file.
    pub fn load(plan: &TlsPlan) -> Result<Option<Tls>, ConfigError> {
        if plan.mode == TlsMode::Off {
            return Ok(None);
        }
        let required = plan.mode == TlsMode::Require;
        let key_log = key_log()?;
        if let Some(path) = &plan.psk {
            let path = absolute(path)?;
            let failed =
                |why: &dyn std::fmt::Display| ConfigError::new(format!("--tls-psk: {}: {why}", path.display()));
            let keys = KeyFile::read(&path).map_err(|error| failed(&error))?;
            let user = keys.only_user();
            let server = ServerTls::with_keys(keys, plan.priority.clone(), key_log).map_err(|error| failed(&error))?;
            let uri = TlsUri { required, user, file: Some(("tls-psk-file", path)) };
            return Ok(Some(Tls {
                options: TlsOptions { required, server: Arc::new(server) },
                uri,
                certificates: None,
            }));
        }
        let Some(path) = directory(plan)? else { return Ok(None) };
        let failed = |why: &dyn std::fmt::Display| ConfigError::new(format!("TLS: {}: {why}", path.display()));
        let opened = File::open(&path).map_err(|error| failed(&plain(&error)))?;
        let certificates =
            Certificates { path: path.clone(), directory: opened.into(), opener: Opener::new(OPEN.0, OPEN.1) };
        let files = certificates.read().map_err(|error| failed(&error))?;
        let clients = if plan.verify_peer { ClientCertificates::Required } else { ClientCertificates::NotAsked };
        let server = ServerTls::with_certificates(&files, clients, plan.priority.clone(), key_log)
            .map_err(|error| failed(&error))?;
        let file = plan.certificates.is_some().then_some(("tls-certificates", path));
        Ok(Some(Tls {
            options: TlsOptions { required, server: Arc::new(server) },
            uri: TlsUri { required, user: None, file },
            certificates: Some(certificates),
        }))
    }

    /// For the server.
    pub fn options(&self) -> &TlsOptions {
        &self.options
    }

    /// For `--run` and `--print-uri`.
    pub fn uri(&self) -> &TlsUri {
        &self.uri
    }

    /// Starts the helper, while the process has the rights of the start. Nothing happens if nothing
    /// is read again.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub fn prepare_rereading(&self) -> Result<(), ConfigError> {
        let Some(certificates) = &self.certificates else { return Ok(()) };
        certificates
            .opener
            .move_out(certificates.directory.as_fd())
            .map_err(|error| ConfigError::new(format!("TLS: cannot start a helper process: {error}")))
    }

    /// Whether SIGHUP makes the server read the certificates again.
    pub fn is_reread(&self) -> bool {
        self.certificates.is_some()
    }

    /// Reads the certificates again each time `asked` is notified. Whatever is wrong is a line in
    /// the log, and the old ones stay.
    pub fn reread_when(self, asked: Arc<Notify>) -> Option<impl Future<Output = ()> + Send + use<>> {
        let certificates = Arc::new(self.certificates?);
        let server = self.options.server;
        Some(async move {
            loop {
                asked.notified().await;
                let (certificates, server) = (Arc::clone(&certificates), Arc::clone(&server));
                let reread = move || {
                    let path = certificates.path.display();
                    let replaced = certificates
                        .read()
                        .and_then(|files| server.replace_certificates(&files).map_err(|error| error.to_string()));
                    match replaced {
                        Ok(()) => tracing::info!("TLS: {path}: the certificates were read again"),
                        Err(why) => tracing::warn!("TLS: {path}: {why}; the certificates read before stay in use"),
                    }
                };
                // A task of its own, so that a panic does not end the rereading.
                let _ = tokio::task::spawn_blocking(reread).await;
            }
        })
    }
}

impl Certificates {
    fn read(&self) -> Result<CertificateFiles, String> {
        let read = |file: &str| {
            let opened = self.opener.open(self.directory.as_fd(), OsStr::new(file), OpenFor::Reading)?;
            read_bounded(opened.into())
        };
        CertificateFiles::read(Role::Server, read).map_err(|error| error.to_string())
    }
}

impl TlsUri {
    /// Changes the URI of a server so that a client uses TLS, if it has to.
    pub fn apply(&self, uri: String) -> String {
        let Some(rest) = uri.strip_prefix("nbd").filter(|_| self.required) else { return uri };
        let mut with_tls = format!("nbds{rest}");
        if let Some(user) = &self.user {
            with_tls = with_tls.replacen("://", &format!("://{}@", uri::escape(OsStr::new(user))), 1);
            // libnbd reads the user only in front of a path.
            with_tls = with_tls.replacen("@?", "@/?", 1);
        }
        if let Some((parameter, path)) = &self.file {
            with_tls.push(if with_tls.contains('?') { '&' } else { '?' });
            with_tls.push_str(&format!("{parameter}={}", uri::escape(path.as_os_str())));
        }
        with_tls
    }

    /// The value of `$tls`, as in nbdkit.
    pub fn variable(&self) -> &'static str {
        if self.required { "2" } else { "1" }
    }
}

/// The directory of certificates. None: there is none, and nobody asked for one in particular.
fn directory(plan: &TlsPlan) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = &plan.certificates {
        return absolute(path).map(Some);
    }
    let root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let found = rbdkit_tls::directory_with_certificates("nbdkit", Role::Server, root, home.as_deref());
    match (&found, plan.mode) {
        (None, TlsMode::Require) => Err(ConfigError::new(
            "--tls=require: there are no certificates and no keys: use --tls-certificates DIR or --tls-psk FILE",
        )),
        (None, TlsMode::On) => {
            tracing::warn!(
                "--tls=on: there are no certificates and no keys, so clients cannot use TLS: use --tls-certificates \
                 DIR or --tls-psk FILE"
            );
            Ok(None)
        }
        _ => Ok(found),
    }
}

/// The file for the secrets of all connections.
fn key_log() -> Result<Option<KeyLogFile>, ConfigError> {
    let log = KeyLogFile::from_environment().map_err(|error| ConfigError::new(error.to_string()))?;
    if log.is_some() {
        tracing::warn!("SSLKEYLOGFILE is set: who can read this file can decrypt the connections");
    }
    Ok(log)
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| ConfigError::new(format!("{}: {}", path.display(), plain(&error))))
}

/// Opens a file of the directory of certificates for the server: one of the four, for reading.
fn open(directory: BorrowedFd<'_>, name: &OsStr, purpose: OpenFor) -> rustix::io::Result<OwnedFd> {
    let known = Role::Server.files().iter().any(|file| file.as_bytes() == name.as_bytes());
    if !known || purpose != OpenFor::Reading {
        return Err(rustix::io::Errno::PERM);
    }
    // A pipe in its place must not hold the helper.
    openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_says_what_a_client_needs() {
        let keys = TlsUri { required: true, user: Some("al ice".into()), file: Some(("tls-psk-file", "/k&".into())) };
        for (plain, with_tls) in [
            ("nbd://localhost:10809", "nbds://al%20ice@localhost:10809?tls-psk-file=/k%26"),
            ("nbd+unix:///e?socket=/s", "nbds+unix://al%20ice@/e?socket=/s&tls-psk-file=/k%26"),
            ("nbd+unix://?socket=/s", "nbds+unix://al%20ice@/?socket=/s&tls-psk-file=/k%26"),
        ] {
            assert_eq!(keys.apply(plain.to_string()), with_tls);
        }
        let found = TlsUri { required: true, ..TlsUri::default() };
        assert_eq!(found.apply("nbd://localhost:1/e".to_string()), "nbds://localhost:1/e");
        assert_eq!(TlsUri::default().apply("nbd://localhost".to_string()), "nbd://localhost");
    }

    #[test]
    fn the_helper_opens_four_files_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["server-key.pem", "ca-key.pem"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let handle = File::open(directory.path()).unwrap();
        let open = |name: &str, purpose| open(handle.as_fd(), OsStr::new(name), purpose).map(drop);
        assert_eq!(open("server-key.pem", OpenFor::Reading), Ok(()));
        assert_eq!(open("server-cert.pem", OpenFor::Reading), Err(rustix::io::Errno::NOENT));
        assert_eq!(open("server-key.pem", OpenFor::Writing), Err(rustix::io::Errno::PERM));
        for name in ["ca-key.pem", "../server-key.pem", "./server-key.pem", ""] {
            assert_eq!(open(name, OpenFor::Reading), Err(rustix::io::Errno::PERM), "{name}");
        }
    }
}
