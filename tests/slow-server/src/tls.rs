//! TLS with a certificate of the test's own. Only programs that are told to trust it do.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A key and a self-signed certificate for it.
pub struct Identity {
    /// The path of the certificate, for programs that shall trust it.
    pub certificate: PathBuf,
    /// The path of the key.
    pub key: PathBuf,
}

impl Identity {
    /// Makes a key and a certificate for `name` in the directory, valid for ten days. For
    /// `localhost` the certificate includes 127.0.0.1.
    ///
    /// # Errors
    /// If the program `openssl` fails.
    pub fn create(directory: &Path, name: &str) -> io::Result<Identity> {
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        let mut names = format!("subjectAltName=DNS:{name}");
        if name == "localhost" {
            names.push_str(",IP:127.0.0.1");
        }
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", &format!("/CN={name}"), "-addext", &names, "-days", "10"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()?;
        match output.status.success() {
            true => Ok(Identity { certificate, key }),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }

    /// The same key and name with a certificate that has expired.
    ///
    /// # Errors
    /// If the program `openssl` fails.
    pub fn expired(&self) -> io::Result<Identity> {
        let (request, certificate) = (self.key.with_extension("request"), self.key.with_extension("expired.pem"));
        let run = |arguments: &[&str], last: [&Path; 2]| -> io::Result<()> {
            let output = Command::new("openssl").args(arguments).arg(last[0]).arg("-out").arg(last[1]).output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
            }
        };
        let key = self.key.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        run(
            &["x509", "-x509toreq", "-copy_extensions", "copy", "-signkey", key, "-in"],
            [&self.certificate, &request],
        )?;
        let again = ["x509", "-req", "-days", "-1", "-copy_extensions", "copy", "-signkey", key, "-in"];
        run(&again, [&request, &certificate])?;
        Ok(Identity { certificate, key: self.key.clone() })
    }

    pub(crate) fn config(&self) -> Arc<rustls::ServerConfig> {
        let certificate = CertificateDer::from_pem_file(&self.certificate).expect("the test's certificate");
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("the test's key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them all")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a key that fits its certificate");
        Arc::new(config)
    }
}
