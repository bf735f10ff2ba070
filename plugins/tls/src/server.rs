//! The settings of a server.

use std::sync::{Arc, Mutex};

use openssl::ssl::SslContext;
use rbdkit_plugin_api::lock;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::certificates::CertificateFiles;
use crate::error::TlsError;
use crate::key_log::KeyLogFile;
use crate::keys::KeyFile;
use crate::priority::Priority;
use crate::session::Session;
use crate::{with_openssl, with_rustls};

/// What the server asks of clients besides encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing.
    NotAsked,
    /// A certificate that the authority has signed and not revoked.
    Required,
}

enum ServerSettings {
    Certificates(Arc<ServerConfig>),
    Keys(SslContext),
}

/// Makes the sessions of a server.
pub struct ServerTls {
    settings: Mutex<Arc<ServerSettings>>,
    clients: ClientCertificates,
    priority: Priority,
    key_log: Option<KeyLogFile>,
}

impl ServerTls {
    /// With certificates.
    ///
    /// # Errors
    /// One line that says which file is wrong and why.
    pub fn with_certificates(
        files: &CertificateFiles,
        clients: ClientCertificates,
        priority: Priority,
        key_log: Option<KeyLogFile>,
    ) -> Result<ServerTls, TlsError> {
        let config = config(files, clients, &priority, key_log.clone())?;
        Ok(ServerTls {
            settings: Mutex::new(Arc::new(ServerSettings::Certificates(config))),
            clients,
            priority,
            key_log,
        })
    }

    /// With pre-shared keys.
    ///
    /// # Errors
    /// The priority leaves no algorithms.
    pub fn with_keys(keys: KeyFile, priority: Priority, key_log: Option<KeyLogFile>) -> Result<ServerTls, TlsError> {
        let context = with_openssl::server(Arc::new(keys), &priority, key_log.clone())?;
        let settings = Mutex::new(Arc::new(ServerSettings::Keys(context)));
        Ok(ServerTls { settings, clients: ClientCertificates::NotAsked, priority, key_log })
    }

    /// Of a server with certificates: takes others for the sessions that begin from now on. If they
    /// are wrong, the old ones stay.
    ///
    /// # Errors
    /// One line that says which file is wrong and why.
    pub fn replace_certificates(&self, files: &CertificateFiles) -> Result<(), TlsError> {
        let config = config(files, self.clients, &self.priority, self.key_log.clone())?;
        *lock(&self.settings) = Arc::new(ServerSettings::Certificates(config));
        Ok(())
    }

    /// For tests: a server of rustls with the same settings.
    #[cfg(test)]
    pub(crate) fn rustls(&self) -> rustls::ServerConnection {
        let settings = Arc::clone(&lock(&self.settings));
        let ServerSettings::Certificates(config) = &*settings else { panic!("no certificates") };
        rustls::ServerConnection::new(Arc::clone(config)).unwrap()
    }

    /// The session of a client.
    ///
    /// # Errors
    /// The library refuses; it has no memory, for example.
    pub fn accept(&self) -> Result<Session, TlsError> {
        let settings = Arc::clone(&lock(&self.settings));
        match &*settings {
            ServerSettings::Certificates(config) => {
                Ok(Session::with_certificates(with_rustls::CertificateEngine::server(config)?))
            }
            ServerSettings::Keys(context) => {
                Ok(Session::with_keys(with_openssl::KeyEngine::new(context, with_openssl::End::Server)?))
            }
        }
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

fn config(
    files: &CertificateFiles,
    clients: ClientCertificates,
    priority: &Priority,
    key_log: Option<KeyLogFile>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError::of_library(&error);
    let provider = with_rustls::provider(priority)?;
    let authorities = files.authorities()?;
    let own = files.own()?.ok_or_else(|| TlsError::new("server-cert.pem: is missing"))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&with_rustls::versions(priority))
        .map_err(|error| failed(&error))?;
    let builder = match clients {
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
        ClientCertificates::Required => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                .with_crls(files.revoked()?)
                // A list speaks of its own authority only. One that is out of date is refused.
                .allow_unknown_revocation_status()
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| TlsError::new(format!("ca-crl.pem: {}", failed(&error))))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(own.chain, own.key)
        .map_err(|error| TlsError::new(format!("server-cert.pem and server-key.pem: {}", failed(&error))))?;
    // A session that is resumed would pass by the revocation list, and the server would have to
    // remember it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Records are encrypted here.
    config.enable_secret_extraction = true;
    config.ignore_client_order = priority.server_order;
    if let Some(log) = key_log {
        config.key_log = Arc::new(log);
    }
    Ok(Arc::new(config))
}
