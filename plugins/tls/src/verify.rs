//! How a client verifies the server's certificate.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use crate::names;

/// What has to be true of the server's certificate.
pub(crate) enum Demand {
    /// An authority has signed it, and it is for the server's name.
    SignedForName,
    /// An authority has signed it, for whatever name.
    Signed,
    /// Nothing: an attacker on the way can show his own.
    Nothing,
}

/// Verifies the server's certificate.
pub(crate) struct Verifier {
    demand: Demand,
    /// None if there is nothing to demand.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// `chain` verifies that an authority has signed the certificate.
    pub(crate) fn new(
        demand: Demand,
        chain: Option<Arc<WebPkiServerVerifier>>,
        provider: Arc<CryptoProvider>,
    ) -> Verifier {
        Verifier { demand, chain, provider }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let verified = chain.verify_server_cert(certificate, intermediates, name, ocsp, now);
        // rustls checks the name last, so that everything else is right here.
        let names = match &verified {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName)) => &[][..],
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => presented,
            _ => return verified,
        };
        let right = match self.demand {
            Demand::SignedForName => names.is_empty() && has_common_name(certificate, name),
            Demand::Signed | Demand::Nothing => true,
        };
        if right { Ok(ServerCertVerified::assertion()) } else { verified }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the common name is that of the server. nbdkit's instructions for certificates name the
/// server so; newer certificates have alternative names, which alone count then.
fn has_common_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let wanted = name.to_str();
    names::common_names(certificate).iter().any(|name| name.eq_ignore_ascii_case(&wanted))
}
