//! The settings of a client.

use std::path::Path;
use std::sync::Arc;

use openssl::ssl::SslContext;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use crate::certificates::{CertificateFiles, roots};
use crate::error::TlsError;
use crate::files::read_path;
use crate::key_log::KeyLogFile;
use crate::keys::KeyFile;
use crate::priority::Priority;
use crate::session::Session;
use crate::verify::{Demand, Verifier};
use crate::{with_openssl, with_rustls};

/// The authorities that the system trusts.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How the server has to prove who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerIdentity {
    /// An authority has signed its certificate for this name or address.
    Name(String),
    /// An authority has signed its certificate.
    AnyName,
    /// Not at all.
    Unverified,
}

enum ClientSettings {
    Certificates { config: Arc<ClientConfig>, name: ServerName<'static> },
    Keys(SslContext),
}

/// Makes the sessions of a client.
pub struct ClientTls(ClientSettings);

impl ClientTls {
    /// With certificates. Without files the authorities are those that the system trusts.
    ///
    /// # Errors
    /// One line that says which file is wrong and why.
    pub fn with_certificates(
        files: Option<&CertificateFiles>,
        server: &ServerIdentity,
        key_log: Option<KeyLogFile>,
    ) -> Result<ClientTls, TlsError> {
        let priority = Priority::default();
        let failed = |error: &dyn std::fmt::Display| TlsError::of_library(&error);
        let provider = with_rustls::provider(&priority)?;
        let authorities = || -> Result<RootCertStore, TlsError> {
            match files {
                Some(files) => files.authorities(),
                None => {
                    let pem = read_path(Path::new(SYSTEM));
                    roots(&pem.map_err(|error| TlsError::new(format!("{SYSTEM}: {error}")))?, SYSTEM)
                }
            }
        };
        let (demand, chain) = match server {
            ServerIdentity::Unverified => (Demand::Nothing, None),
            ServerIdentity::AnyName | ServerIdentity::Name(_) => {
                let revoked = files.map(CertificateFiles::revoked).transpose()?.unwrap_or_default();
                let chain =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(authorities()?), Arc::clone(&provider))
                        .with_crls(revoked)
                        .allow_unknown_revocation_status()
                        .enforce_revocation_expiration()
                        .build()
                        .map_err(|error| TlsError::new(format!("ca-crl.pem: {}", failed(&error))))?;
                let demand = if *server == ServerIdentity::AnyName { Demand::Signed } else { Demand::SignedForName };
                (demand, Some(chain))
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&with_rustls::versions(&priority))
            .map_err(|error| failed(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(demand, chain, provider)));
        let mut config = match files.map(CertificateFiles::own).transpose()?.flatten() {
            Some(own) => builder
                .with_client_auth_cert(own.chain, own.key)
                .map_err(|error| TlsError::new(format!("client-cert.pem and client-key.pem: {}", failed(&error))))?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        // Records are encrypted here.
        config.enable_secret_extraction = true;
        if let Some(log) = key_log {
            config.key_log = Arc::new(log);
        }
        let name = match server {
            ServerIdentity::Name(name) => {
                let parsed = ServerName::try_from(name.clone());
                parsed
                    .map_err(|_| TlsError::new(format!("'{name}' is not a name or address that a server can have")))?
            }
            ServerIdentity::AnyName | ServerIdentity::Unverified => {
                config.enable_sni = false;
                ServerName::try_from("localhost").map_err(|error| failed(&error))?
            }
        };
        Ok(ClientTls(ClientSettings::Certificates { config: Arc::new(config), name }))
    }

    /// With the key of this user.
    ///
    /// # Errors
    /// The file has no key for the user.
    pub fn with_keys(keys: &KeyFile, user: &str, key_log: Option<KeyLogFile>) -> Result<ClientTls, TlsError> {
        let shown: String = user.chars().map(|c| if rbdkit_plugin_api::text::is_hidden(c) { '?' } else { c }).collect();
        let key = keys.key(user.as_bytes()).ok_or_else(|| TlsError::new(format!("has no key for user '{shown}'")))?;
        Ok(ClientTls(ClientSettings::Keys(with_openssl::client(user, key, &Priority::default(), key_log)?)))
    }

    /// For tests: a client of rustls with the same settings.
    #[cfg(test)]
    pub(crate) fn rustls(&self) -> rustls::ClientConnection {
        let ClientSettings::Certificates { config, name } = &self.0 else { panic!("no certificates") };
        rustls::ClientConnection::new(Arc::clone(config), name.clone()).unwrap()
    }

    /// The session of a connection.
    ///
    /// # Errors
    /// The library refuses; it has no memory, for example.
    pub fn connect(&self) -> Result<Session, TlsError> {
        match &self.0 {
            ClientSettings::Certificates { config, name } => {
                Ok(Session::with_certificates(with_rustls::CertificateEngine::client(config, name.clone())?))
            }
            ClientSettings::Keys(context) => {
                Ok(Session::with_keys(with_openssl::KeyEngine::new(context, with_openssl::End::Client)?))
            }
        }
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}
