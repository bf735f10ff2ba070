//! Signatures as cosign makes them with a key pair: ECDSA on the curve P-256, with SHA-256.
//!
//! What is signed is a short JSON text ("simple signing") with the digest of the manifest. So a
//! signature covers the manifest, and through the digests in it the component. The text also names
//! where the signer pushed the component; like cosign, nobody compares that, so that a component
//! can be copied to another registry with its signature.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;

use crate::bundle::{Bundle, Content};
use crate::digest::Digest;
use crate::error::{Error, shown};

/// What comes before the point in a public key of this curve (`SubjectPublicKeyInfo` of RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Bytes of an uncompressed point.
const POINT_BYTES: usize = 65;

/// The largest file of a key that is read, in bytes.
const MAX_KEY_FILE_BYTES: u64 = 64 << 10;

/// What cosign writes as the type of a signed text.
const TYPE: &str = "cosign container image signature";

/// A key that says whether a signature is right.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// For messages.
    path: PathBuf,
    point: [u8; POINT_BYTES],
}

/// A key that signs.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    path: PathBuf,
}

/// A signed text and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The text.
    pub payload: Vec<u8>,
    /// The signature in base64.
    pub signature: String,
}

impl PublicKey {
    /// Reads a public key from a PEM file, which `cosign generate-key-pair` and
    /// `rbdkit-filter keygen` write.
    ///
    /// # Errors
    /// The file cannot be read, or is not a public key of the curve P-256.
    pub fn read(path: &Path) -> Result<PublicKey, Error> {
        let wrong = |why: &str| Error::File { path: path.to_path_buf(), why: why.into() };
        let text = read_key_file(path)?;
        match <(SectionKind, Vec<u8>)>::from_pem_slice(&text) {
            Ok((SectionKind::PublicKey, der)) => {
                let point = der.strip_prefix(&SPKI_PREFIX[..]).and_then(|point| point.try_into().ok());
                let point = point.ok_or_else(|| wrong("is not a public key of the curve P-256 (ECDSA)"))?;
                Ok(PublicKey { path: path.to_path_buf(), point })
            }
            Ok((SectionKind::PrivateKey | SectionKind::EcPrivateKey, _)) => {
                Err(wrong("is a private key: give the public one"))
            }
            _ => Err(wrong("is not a public key in PEM: it has no line '-----BEGIN PUBLIC KEY-----'")),
        }
    }

    /// The file that the key was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The digest of the key, which identifies it.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.der())
    }

    fn der(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.point].concat()
    }

    /// Whether this is a signature by the key of the manifest with this digest.
    #[must_use]
    pub fn has_signed(&self, manifest: &Digest, signed: &Signed) -> bool {
        let Ok(signature) = STANDARD.decode(signed.signature.trim()) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(&signed.payload, &signature).is_ok() && is_about(&signed.payload, manifest)
    }

    /// Whether this is a bundle with a signature by the key of the manifest with these bytes.
    #[must_use]
    pub fn has_signed_in(&self, bundle: &[u8], manifest: &[u8]) -> bool {
        let Ok(bundle) = Bundle::parse(bundle) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        match &bundle.content {
            Content::Statement { covered, manifests } => {
                manifests.contains(&Digest::of(manifest)) && key.verify(covered, &bundle.signature).is_ok()
            }
            Content::Manifest => key.verify(manifest, &bundle.signature).is_ok(),
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

impl PrivateKey {
    /// Reads a private key: PKCS#8 in PEM, not encrypted.
    ///
    /// # Errors
    /// The file cannot be read, or is another kind of key.
    pub fn read(path: &Path) -> Result<PrivateKey, Error> {
        let wrong = |why: &str| Error::File { path: path.to_path_buf(), why: why.into() };
        let text = read_key_file(path)?;
        if text.windows(9).any(|word| word == b"ENCRYPTED") {
            return Err(wrong("is encrypted: give a key that is not (rbdkit-filter keygen makes one)"));
        }
        match <(SectionKind, Vec<u8>)>::from_pem_slice(&text) {
            Ok((SectionKind::PrivateKey, der)) => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der, &SystemRandom::new());
                let pair = pair.map_err(|_| wrong("is not a private key of the curve P-256 (ECDSA)"))?;
                Ok(PrivateKey { pair, path: path.to_path_buf() })
            }
            Ok((SectionKind::EcPrivateKey, _)) => {
                let how = format!("is not in PKCS#8: openssl pkcs8 -topk8 -nocrypt -in {} makes it so", path.display());
                Err(wrong(&how))
            }
            Ok((SectionKind::PublicKey, _)) => Err(wrong("is a public key: give the private one")),
            _ => Err(wrong("is not a private key in PEM: it has no line '-----BEGIN PRIVATE KEY-----'")),
        }
    }

    /// The public key that belongs to it.
    ///
    /// # Errors
    /// None for a key of this curve.
    pub fn public(&self) -> Result<PublicKey, Error> {
        let point = self.pair.public_key().as_ref().try_into();
        let point = point.map_err(|_| Error::Signature("the public key has another size".into()))?;
        Ok(PublicKey { path: self.path.clone(), point })
    }

    /// Signs the manifest with this digest.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn sign(&self, identity: &str, manifest: &Digest) -> Result<Signed, Error> {
        // The order of cosign's own text.
        let who = format!(r#"{{"docker-reference":"{identity}"}}"#);
        let what = format!(r#"{{"docker-manifest-digest":"{manifest}"}}"#);
        let critical = format!(r#"{{"identity":{who},"image":{what},"type":"{TYPE}"}}"#);
        let payload = format!(r#"{{"critical":{critical},"optional":null}}"#);
        let signature = self.pair.sign(&SystemRandom::new(), payload.as_bytes());
        let signature = signature.map_err(|_| Error::Signature("signing failed: no random numbers".into()))?;
        Ok(Signed { payload: payload.into_bytes(), signature: STANDARD.encode(signature.as_ref()) })
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

/// Whether a signed text is about this manifest.
fn is_about(payload: &[u8], manifest: &Digest) -> bool {
    serde_json::from_slice::<Payload>(payload).is_ok_and(|payload| {
        payload.critical.kind == TYPE
            && Digest::parse(&payload.critical.image.docker_manifest_digest) == Some(*manifest)
    })
}

/// Makes a pair of keys and writes it to two new files. Only the owner may read the private one.
///
/// # Errors
/// A file exists already or cannot be written. Neither is there then.
pub fn make_keys(private: &Path, public: &Path) -> Result<PublicKey, Error> {
    let failed = |_| Error::Signature("the operating system gives no random numbers".into());
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    let document = document.map_err(failed)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &SystemRandom::new());
    let pair = pair.map_err(|_| Error::Signature("the new key is not accepted".into()))?;
    let key = PublicKey { path: public.to_path_buf(), ..PrivateKey { pair, path: private.to_path_buf() }.public()? };
    write_new(private, 0o600, &pem("PRIVATE KEY", document.as_ref()))?;
    write_new(public, 0o644, &pem("PUBLIC KEY", &key.der())).inspect_err(|_| {
        // This file is of this call.
        let _ = fs::remove_file(private);
    })?;
    Ok(key)
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), Error> {
    let write = || OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(text.as_bytes());
    write().map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AlreadyExists => "exists already, and keys are not overwritten".into(),
            _ => rbdkit_plugin_api::text::plain(&error),
        };
        Error::File { path: path.to_path_buf(), why }
    })
}

fn read_key_file(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |why: String| Error::File { path: path.to_path_buf(), why: shown(&why) };
    let mut text = Vec::new();
    let read = || fs::File::open(path)?.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut text);
    match { read }() {
        Err(error) => Err(wrong(rbdkit_plugin_api::text::plain(&error))),
        Ok(size) if size as u64 > MAX_KEY_FILE_BYTES => Err(wrong("is too large for a key".into())),
        Ok(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    /// A key, a text and a signature that cosign made. They are from the tests of sigstore's own
    /// library.
    const COSIGN_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENptdY/l3nB0yqkXLBWkZWQwo6+cu
OSWS1X9vPavpiQOoTTGC0xX57OojUadxF1cdQmrsiReWg2Wn4FneJfa8xw==
-----END PUBLIC KEY-----
";
    const COSIGN_DIGEST: &str = "sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b";
    const COSIGN_IDENTITY: &str = "registry-testing.svc.lan/busybox";
    const COSIGN_SIGNATURE: &str =
        "MEUCIQD6q/COgzOyW0YH1Dk+CCYSt4uAhm3FDHUwvPI55zwnlwIgE0ZK58ZOWpZw8YVmBapJhBqCfdPekIknimuO0xH8Jh8=";

    fn keys() -> (TempDir, PublicKey, PrivateKey) {
        let dir = TempDir::new().unwrap();
        let public = make_keys(&dir.path().join("k.key"), &dir.path().join("k.pub")).unwrap();
        let private = PrivateKey::read(&dir.path().join("k.key")).unwrap();
        (dir, public, private)
    }

    #[test]
    fn what_cosign_signed_is_accepted_and_our_text_is_the_same() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("cosign.pub");
        fs::write(&path, COSIGN_KEY).unwrap();
        let (key, digest) = (PublicKey::read(&path).unwrap(), Digest::parse(COSIGN_DIGEST).unwrap());
        let (_dir, _, own) = keys();
        let payload = own.sign(COSIGN_IDENTITY, &digest).unwrap().payload;
        let signed = Signed { payload, signature: COSIGN_SIGNATURE.into() };
        assert!(key.has_signed(&digest, &signed));
        assert!(!key.has_signed(&Digest::of(b"another"), &signed));
    }

    #[test]
    fn a_signature_holds_for_one_key_one_manifest_and_one_text() {
        let ((_a, public, private), (_b, other, _)) = (keys(), keys());
        let digest = Digest::of(b"manifest");
        let signed = private.sign("h/x", &digest).unwrap();
        assert!(public.has_signed(&digest, &signed));
        assert!(!other.has_signed(&digest, &signed));
        assert!(!public.has_signed(&Digest::of(b"other"), &signed));
        let mut changed = signed.clone();
        changed.payload[20] ^= 1;
        assert!(!public.has_signed(&digest, &changed));
        for signature in ["", "!", "AAAA", &"A".repeat(100_000)] {
            assert!(!public.has_signed(&digest, &Signed { signature: signature.into(), ..signed.clone() }));
        }
        // Signed with the right key, but for another purpose.
        let payload = br#"{"critical":{"image":{},"type":"x"}}"#.to_vec();
        let signature = private.pair.sign(&SystemRandom::new(), &payload).unwrap();
        let signed = Signed { payload, signature: STANDARD.encode(signature.as_ref()) };
        assert!(!public.has_signed(&digest, &signed));
    }

    /// Both were made by sigstore's library for JavaScript. The README beside them says how.
    #[test]
    fn a_bundle_holds_for_one_key_and_one_manifest() {
        const STATEMENT: [&[u8]; 2] = [
            include_bytes!("../../../tests/tests/registry/interop/bundle-statement.json"),
            include_bytes!("../../../tests/tests/registry/interop/bundle-statement.pub"),
        ];
        const MESSAGE: [&[u8]; 2] = [
            include_bytes!("../../../tests/tests/registry/interop/bundle-message.json"),
            include_bytes!("../../../tests/tests/registry/interop/bundle-message.pub"),
        ];
        let manifest = include_bytes!("../../../tests/tests/registry/interop/wkg-manifest.json");
        let (dir, other, _) = keys();
        for [bundle, key] in [STATEMENT, MESSAGE] {
            let path = dir.path().join("theirs.pub");
            fs::write(&path, key).unwrap();
            let key = PublicKey::read(&path).unwrap();
            assert!(key.has_signed_in(bundle, manifest));
            assert!(!other.has_signed_in(bundle, manifest));
            assert!(!key.has_signed_in(bundle, b"another manifest"));
            for at in (0..bundle.len()).step_by(3) {
                let mut changed = bundle.to_vec();
                changed[at] ^= 1;
                // What is not signed may change: the key's hint, and names of fields that nobody
                // reads.
                let is_signed = Bundle::parse(&changed).is_ok_and(|one| one != Bundle::parse(bundle).unwrap());
                assert!(!is_signed || !key.has_signed_in(&changed, manifest), "byte {at}");
            }
        }
    }

    #[test]
    fn openssl_accepts_our_signatures_and_we_accept_its_keys() {
        let (dir, public, private) = keys();
        let file = |name: &str| dir.path().join(name);
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(dir.path()).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let digest = Digest::of(b"manifest");
        let signed = private.sign("h/x", &digest).unwrap();
        fs::write(file("text"), &signed.payload).unwrap();
        fs::write(file("sig"), STANDARD.decode(&signed.signature).unwrap()).unwrap();
        openssl(&["dgst", "-sha256", "-verify", "k.pub", "-signature", "sig", "text"]);
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "o.key"]);
        openssl(&["pkey", "-in", "o.key", "-pubout", "-out", "o.pub"]);
        openssl(&["dgst", "-sha256", "-sign", "o.key", "-out", "o.sig", "text"]);
        let theirs = PublicKey::read(&file("o.pub")).unwrap();
        let signature = STANDARD.encode(fs::read(file("o.sig")).unwrap());
        assert!(theirs.has_signed(&digest, &Signed { signature, ..signed }));
        assert_eq!(PrivateKey::read(&file("o.key")).unwrap().public().unwrap().point, theirs.point);
        assert_ne!(theirs.fingerprint(), public.fingerprint());
    }

    #[test]
    fn a_private_key_is_for_its_owner_only_and_is_never_overwritten() {
        let (dir, _, _) = keys();
        let (key, public) = (dir.path().join("k.key"), dir.path().join("k.pub"));
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        let before = fs::read(&key).unwrap();
        let error = make_keys(&key, &dir.path().join("new.pub")).unwrap_err().to_string();
        assert!(error.ends_with("k.key: exists already, and keys are not overwritten"), "{error}");
        assert_eq!(fs::read(&key).unwrap(), before);
        // The second file is in the way: the first does not stay.
        assert!(make_keys(&dir.path().join("new.key"), &public).is_err());
        assert!(!dir.path().join("new.key").exists());
    }

    #[test]
    fn what_is_no_key_is_named() {
        let (dir, _, _) = keys();
        let path = dir.path().join("x");
        let public = |text: &str| {
            fs::write(&path, text).unwrap();
            PublicKey::read(&path).unwrap_err().to_string()
        };
        let private = |text: &str| {
            fs::write(&path, text).unwrap();
            PrivateKey::read(&path).err().unwrap().to_string()
        };
        let (key, other) = (
            fs::read_to_string(dir.path().join("k.key")).unwrap(),
            fs::read_to_string(dir.path().join("k.pub")).unwrap(),
        );
        assert!(public(&key).ends_with("is a private key: give the public one"));
        assert!(public("x").contains("is not a public key in PEM"));
        assert!(public(&pem("PUBLIC KEY", &[1; 91])).ends_with("is not a public key of the curve P-256 (ECDSA)"));
        assert!(public(&"x".repeat(100_000)).ends_with("is too large for a key"));
        assert!(private(&other).ends_with("is a public key: give the private one"));
        assert!(private("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n").contains("is encrypted"));
        assert!(private(&pem("PRIVATE KEY", b"x")).ends_with("is not a private key of the curve P-256 (ECDSA)"));
        assert!(private(&pem("EC PRIVATE KEY", b"x")).contains("openssl pkcs8"));
        assert!(
            PublicKey::read(Path::new("/proc/nowhere")).unwrap_err().to_string().starts_with("/proc/nowhere: No such")
        );
    }
}
