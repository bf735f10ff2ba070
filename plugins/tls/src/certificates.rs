//! The files in a directory of certificates, under the names that nbdkit and libnbd give them.

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::TlsError;
use crate::files::read_path;
use crate::with_openssl;

/// The certificate of the authority, or several.
pub(crate) const CA: &str = "ca-cert.pem";
/// The revocation list, which may be missing.
const CRL: &str = "ca-crl.pem";

/// Which end the files are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `server-cert.pem` and `server-key.pem` have to be there.
    Server,
    /// `client-cert.pem` and `client-key.pem` may be missing.
    Client,
}

impl Role {
    /// The files of an end's own certificate and key.
    const fn own(self) -> (&'static str, &'static str) {
        match self {
            Role::Server => ("server-cert.pem", "server-key.pem"),
            Role::Client => ("client-cert.pem", "client-key.pem"),
        }
    }

    /// The files that may be read, for a process that reads them for another one.
    pub const fn files(self) -> [&'static str; 4] {
        let (certificate, key) = self.own();
        [CA, CRL, certificate, key]
    }

    /// Whether an end cannot do without this file.
    fn needs(self, file: &str) -> bool {
        file == CA || (self == Role::Server && file != CRL)
    }
}

/// What the files contain. It is not parsed yet.
pub struct CertificateFiles {
    role: Role,
    ca: Vec<u8>,
    crl: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

impl CertificateFiles {
    /// Reads the files. `read` returns the content of the file of this name in the directory.
    ///
    /// # Errors
    /// One line that begins with the file's name.
    pub fn read(role: Role, read: impl Fn(&str) -> io::Result<Vec<u8>>) -> Result<CertificateFiles, TlsError> {
        let read = |file: &str| match read(file) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !role.needs(file) => Ok(None),
            Err(error) => Err(TlsError::new(format!("{file}: {error}"))),
        };
        let (certificate_file, key_file) = role.own();
        let (certificate, key) = (read(certificate_file)?, read(key_file)?.map(Zeroizing::new));
        if certificate.is_some() != key.is_some() {
            return Err(TlsError::new(format!("there has to be {certificate_file} with {key_file}, or neither")));
        }
        Ok(CertificateFiles { role, ca: read(CA)?.unwrap_or_default(), crl: read(CRL)?, certificate, key })
    }

    /// Reads the files of a directory.
    ///
    /// # Errors
    /// One line that begins with the file's name.
    pub fn of_directory(role: Role, directory: &Path) -> Result<CertificateFiles, TlsError> {
        CertificateFiles::read(role, |file| read_path(&directory.join(file)))
    }

    /// The authorities that certificates of the other end have to come from.
    pub(crate) fn authorities(&self) -> Result<RootCertStore, TlsError> {
        roots(&self.ca, CA)
    }

    pub(crate) fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let Some(crl) = &self.crl else { return Ok(Vec::new()) };
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(crl).collect();
        lists.map_err(|error| TlsError::new(format!("{CRL}: {}", TlsError::of_library(&error))))
    }

    /// The end's own certificate, with those between it and the authority, and its key.
    pub(crate) fn own(&self) -> Result<Option<OwnCertificate>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let (certificate_file, key_file) = self.role.own();
        let chain = certificates(certificate, certificate_file)?;
        let key = private_key(key).map_err(|error| TlsError::new(format!("{key_file}: {error}")))?;
        Ok(Some(OwnCertificate { chain, key }))
    }
}

/// The private key of a file. certtool writes elliptic keys in a form that rustls does not read.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsError::of_library(&error))?;
    if any_supported_type(&key).is_ok() {
        return Ok(key);
    }
    let key = with_openssl::to_pkcs8(pem).ok_or_else(|| TlsError::new("has no private key that can be read"))?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
    match any_supported_type(&key) {
        Ok(_) => Ok(key),
        Err(_) => Err(TlsError::new("is not a key of RSA (2048 to 8192 bits), ECDSA (P-256, P-384) or Ed25519")),
    }
}

pub(crate) struct OwnCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The certificates of a file as authorities. A system's own file has old ones that rustls does not
/// take, which are left out.
pub(crate) fn roots(pem: &[u8], file: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(pem, file)?);
    match roots.is_empty() {
        true => Err(TlsError::new(format!("{file}: has no certificate of an authority"))),
        false => Ok(roots),
    }
}

fn certificates(pem: &[u8], file: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::new(format!("{file}: {}", TlsError::of_library(&error))))?;
    match all.is_empty() {
        true => Err(TlsError::new(format!("{file}: has no certificate"))),
        false => Ok(all),
    }
}

/// The first of the default directories that has the files that `role` needs. `program` is a part
/// of their names. Root has one directory, everybody else has two in the home directory.
pub fn directory_with_certificates(program: &str, role: Role, root: bool, home: Option<&Path>) -> Option<PathBuf> {
    let candidates = match (root, home) {
        (true, _) => vec![Path::new("/etc/pki").join(program)],
        (false, Some(home)) => vec![home.join(".pki").join(program), home.join(".config/pki").join(program)],
        (false, None) => Vec::new(),
    };
    let needed = |directory: &PathBuf| {
        role.files().iter().filter(|file| role.needs(file)).all(|file| directory.join(file).exists())
    };
    candidates.into_iter().find(needed)
}
