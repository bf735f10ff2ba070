//! Sessions with certificates, by rustls.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{CipherSuite, Connection, NamedGroup, SupportedProtocolVersion, version};

use crate::error::TlsError;
use crate::names;
use crate::priority::Priority;
use crate::taken::{PeerNames, Taken};

/// The algorithms of a priority.
pub(crate) fn provider(priority: &Priority) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| {
        use CipherSuite as Suite;
        let version = match suite.tls13() {
            Some(_) => priority.tls13,
            None => priority.tls12,
        };
        version
            && match suite.suite() {
                Suite::TLS13_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => priority.aes128,
                Suite::TLS13_AES_256_GCM_SHA384
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
                | Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => priority.aes256,
                _ => priority.chacha20,
            }
    });
    provider.kx_groups.retain(|group| match group.name() {
        NamedGroup::X25519 => priority.x25519,
        NamedGroup::secp256r1 => priority.secp256r1,
        NamedGroup::secp384r1 => priority.secp384r1,
        _ => false,
    });
    match provider.cipher_suites.is_empty() || provider.kx_groups.is_empty() {
        true => Err(TlsError::new("the priority leaves no algorithms")),
        false => Ok(Arc::new(provider)),
    }
}

/// The versions of a priority.
pub(crate) fn versions(priority: &Priority) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(priority.tls13, &version::TLS13), (priority.tls12, &version::TLS12)];
    all.into_iter().filter(|(has, _)| *has).map(|(_, version)| version).collect()
}

/// A session's state.
pub(crate) struct CertificateEngine(Connection);

impl CertificateEngine {
    pub(crate) fn new(connection: impl Into<Connection>) -> CertificateEngine {
        let mut connection = connection.into();
        // The session limits what it writes.
        connection.set_buffer_limit(None);
        CertificateEngine(connection)
    }

    /// Takes bytes of the other end off the front of `bytes`. It may take only some of them.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<usize, TlsError> {
        let before = bytes.len();
        let count = self.0.read_tls(&mut bytes).map_err(|error| TlsError::of_library(&error))?;
        self.0.process_new_packets().map_err(|error| TlsError::of_library(&error))?;
        // After its end the other side has nothing to say.
        Ok(if count == 0 { before } else { count })
    }

    /// Whether the handshake is still under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes decrypted bytes.
    pub(crate) fn take(&mut self, to: &mut [u8]) -> Result<Taken, TlsError> {
        match self.0.reader().read(to) {
            Ok(0) => Ok(Taken::End),
            Ok(count) => Ok(Taken::Bytes(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Taken::Nothing),
            Err(error) => Err(TlsError::of_library(&error)),
        }
    }

    /// Encrypts all bytes.
    pub(crate) fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> Result<(), TlsError> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        match self.0.writer().write_vectored(slices) {
            Ok(count) if count == length => Ok(()),
            Ok(_) => Err(TlsError::new("the session takes no more data")),
            Err(error) => Err(TlsError::of_library(&error)),
        }
    }

    /// Whether there are encrypted bytes to send.
    pub(crate) fn has_output(&self) -> bool {
        self.0.wants_write()
    }

    /// Sends encrypted bytes, with one call of `to`.
    pub(crate) fn send(&mut self, to: &mut dyn Write) -> io::Result<usize> {
        self.0.write_tls(to)
    }

    /// Says that nothing more follows.
    pub(crate) fn end(&mut self) {
        self.0.send_close_notify();
    }

    /// The names of the other end's certificate.
    pub(crate) fn peer_names(&self) -> PeerNames {
        let certificate = self.0.peer_certificates().and_then(|all| all.first());
        match certificate.and_then(|certificate| names::subject_and_issuer(certificate)) {
            Some((subject, issuer)) => PeerNames { subject: Some(subject), issuer: Some(issuer) },
            None => PeerNames::default(),
        }
    }

    /// Version and cipher, for the log.
    pub(crate) fn algorithms(&self) -> String {
        let version = self.0.protocol_version().and_then(|version| version.as_str());
        let suite = self.0.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        format!("{} {}", version.unwrap_or("TLS"), suite.unwrap_or("unknown cipher"))
    }
}
