//! `SSLKEYLOGFILE`: the secrets of each connection, for a program that decrypts a recording.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::TlsError;

/// A file that was opened for appending. Each line is written by one system call.
#[derive(Clone)]
pub struct KeyLogFile(Arc<File>);

impl KeyLogFile {
    /// Writes to this file.
    pub fn new(file: File) -> KeyLogFile {
        KeyLogFile(Arc::new(file))
    }

    /// The file that `SSLKEYLOGFILE` names, if it names one.
    ///
    /// # Errors
    /// One line: it cannot be opened.
    pub fn from_environment() -> Result<Option<KeyLogFile>, TlsError> {
        let Some(path) = std::env::var_os("SSLKEYLOGFILE").filter(|path| !path.is_empty()) else { return Ok(None) };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let failed = |error| TlsError::new(format!("SSLKEYLOGFILE={}: {error}", Path::new(&path).display()));
        let file = file.map_err(failed)?;
        // libcurl makes the same file when the program starts, open to others.
        if file.metadata().is_ok_and(|told| told.len() == 0) {
            let _ = file.set_permissions(Permissions::from_mode(0o600));
        }
        Ok(Some(KeyLogFile::new(file)))
    }

    /// Appends a line in NSS's format, without its end.
    pub(crate) fn line(&self, line: &str) {
        let line = Zeroizing::new(format!("{line}\n"));
        // A full disk must not end connections.
        let _ = (&*self.0).write_all(line.as_bytes());
    }
}

impl fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyLogFile")
    }
}

impl rustls::KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        use rbdkit_plugin_api::hex;
        let secret = Zeroizing::new(hex::encode(secret));
        self.line(&Zeroizing::new(format!("{label} {} {}", hex::encode(client_random), *secret)));
    }
}
