//! The parameters of TLS, of the plugin and of a URI.

use std::path::PathBuf;

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// It is not.
    #[default]
    Off,
    /// It is if the server has TLS.
    On,
    /// It is, or there is no connection.
    Require,
}

/// The parameters of TLS, or those of a URI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsParameters {
    pub(crate) mode: Option<TlsMode>,
    pub(crate) certificates: Option<PathBuf>,
    pub(crate) psk: Option<PathBuf>,
    pub(crate) username: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) verify: Option<bool>,
}

impl TlsParameters {
    /// What is given here, and otherwise what `other` has.
    pub(crate) fn or(self, other: TlsParameters) -> TlsParameters {
        TlsParameters {
            mode: self.mode.or(other.mode),
            certificates: self.certificates.or(other.certificates),
            psk: self.psk.or(other.psk),
            username: self.username.or(other.username),
            hostname: self.hostname.or(other.hostname),
            verify: self.verify.or(other.verify),
        }
    }

    /// The mode that follows: with any of the parameters the plugin tries TLS.
    pub(crate) fn mode(&self) -> TlsMode {
        match self.mode {
            Some(mode) => mode,
            None if *self == TlsParameters::default() => TlsMode::Off,
            None => TlsMode::On,
        }
    }
}
