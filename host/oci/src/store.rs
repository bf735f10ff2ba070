//! Components that were pulled, by digest, in the directory that also has compiled code.
//!
//! Every byte that comes out of it is compared with a digest or a signature, as if it came from
//! the registry. So a component whose digest is known is there or not, and nothing else.

use rbdkit_cache_directory::{CacheDirectory, default_path};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::{Blob, MAX_BUNDLE_BYTES, MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES, MAX_PAYLOAD_BYTES};
use crate::signature::Signed;

/// The store, or none if there is no private directory for it.
pub(crate) struct Store(Option<CacheDirectory>);

#[derive(Deserialize, Serialize)]
struct Kept {
    payload: String,
    signature: String,
}

impl Store {
    /// The store in the user's cache directory.
    pub(crate) fn open() -> Store {
        let opened = default_path().map(|path| {
            let opened = CacheDirectory::open(&path);
            opened.inspect_err(|why| tracing::debug!("pulled filters are not kept in {}: {why}", path.display()))
        });
        Store(opened.and_then(Result::ok))
    }

    fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        self.0.as_ref()?.read(name, limit.saturating_add(1)).ok()
    }

    fn keep(&self, name: &str, bytes: &[u8]) {
        let Some(directory) = &self.0 else { return };
        let kept = directory.make_room(bytes.len() as u64).and_then(|()| directory.replace(name, bytes));
        if let Err(error) = kept {
            tracing::debug!("cannot keep a pulled filter in {}: {error}", directory.path().display());
        }
    }

    /// The manifest with this digest.
    pub(crate) fn manifest(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = self.read(&format!("{}.manifest", digest.hex()), MAX_MANIFEST_BYTES as u64)?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    pub(crate) fn keep_manifest(&self, bytes: &[u8]) {
        self.keep(&format!("{}.manifest", Digest::of(bytes).hex()), bytes);
    }

    /// The component of a manifest.
    pub(crate) fn component(&self, blob: &Blob) -> Option<Vec<u8>> {
        let bytes = self.read(&format!("{}.wasm", blob.digest.hex()), MAX_COMPONENT_BYTES)?;
        (Blob::of(&bytes) == *blob).then_some(bytes)
    }

    pub(crate) fn keep_component(&self, bytes: &[u8]) {
        self.keep(&format!("{}.wasm", Digest::of(bytes).hex()), bytes);
    }

    /// The signature of a manifest that was accepted last. The caller verifies it again.
    pub(crate) fn signature(&self, manifest: &Digest) -> Option<Signed> {
        let bytes = self.read(&format!("{}.signature", manifest.hex()), 2 * MAX_PAYLOAD_BYTES)?;
        let Kept { payload, signature } = serde_json::from_slice(&bytes).ok()?;
        Some(Signed { payload: payload.into_bytes(), signature })
    }

    /// The bundle for a manifest that was accepted last. The caller verifies it again.
    pub(crate) fn bundle(&self, manifest: &Digest) -> Option<Vec<u8>> {
        self.read(&format!("{}.bundle", manifest.hex()), MAX_BUNDLE_BYTES)
    }

    pub(crate) fn keep_bundle(&self, manifest: &Digest, bytes: &[u8]) {
        self.keep(&format!("{}.bundle", manifest.hex()), bytes);
    }

    pub(crate) fn keep_signature(&self, manifest: &Digest, signed: &Signed) {
        let Ok(payload) = String::from_utf8(signed.payload.clone()) else { return };
        let kept = Kept { payload, signature: signed.signature.clone() };
        if let Ok(bytes) = serde_json::to_vec(&kept) {
            self.keep(&format!("{}.signature", manifest.hex()), &bytes);
        }
    }
}
