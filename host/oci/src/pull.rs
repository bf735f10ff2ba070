//! Pulls a component: from the cache if its digest is known, or from the registry.

use crate::child::{Access, Connection, Purpose};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Blob, SignatureLayer, signature_tag};
use crate::reference::Reference;
use crate::signature::{PublicKey, Signed};
use crate::store::Store;

/// Where a component came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody was asked.
    Cache,
    /// The registry was asked.
    Registry,
}

/// A component that was pulled. It is what its digests say, and signed by the key if one was given.
#[derive(Debug)]
pub struct Pulled {
    /// The component.
    pub component: Vec<u8>,
    /// The digest of its manifest, which pins it.
    pub digest: Digest,
    /// Where it came from.
    pub source: Source,
}

/// The parts that a pull works with.
struct Pull<'a> {
    reference: &'a Reference,
    access: Access,
    store: Store,
    /// Made when it is needed.
    connection: Option<Connection>,
}

/// Pulls a component. If a key is given, the component has to be signed by it.
///
/// # Errors
/// One line: the registry cannot be reached or refuses, the reference names something else, a
/// digest is not the one that was given, or the component is not signed by the key.
pub fn pull(reference: &Reference, access: Access, key: Option<&PublicKey>) -> Result<Pulled, Error> {
    let mut pull = Pull { reference, access, store: Store::open(), connection: None };
    let manifest = pull.manifest()?;
    let digest = Digest::of(&manifest);
    let blob = manifest::parse_component(&manifest)?;
    // Before the component: what is not signed is not fetched.
    if let Some(key) = key {
        pull.verify(&manifest, key)?;
    }
    let component = pull.component(&blob)?;
    pull.store.keep_manifest(&manifest);
    let source = if pull.connection.is_some() { Source::Registry } else { Source::Cache };
    Ok(Pulled { component, digest, source })
}

impl Pull<'_> {
    fn registry(&mut self) -> Result<&mut Connection, Error> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(Connection::open(self.reference, self.access, Purpose::Pull)?)),
        }
    }

    fn manifest(&mut self) -> Result<Vec<u8>, Error> {
        let reference = self.reference;
        if let Some(kept) = reference.digest.as_ref().and_then(|digest| self.store.manifest(digest)) {
            return Ok(kept);
        }
        let which = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        };
        let missing = || Error::registry(format!("{} has no {} {which}", reference.host, reference.name));
        let manifest = self.registry()?.manifest(&which)?.ok_or_else(missing)?;
        let found = Digest::of(&manifest);
        match reference.digest {
            Some(digest) if digest != found => {
                Err(Error::content(format!("{} sends {found} where {digest} was asked for", reference.host)))
            }
            _ => Ok(manifest),
        }
    }

    fn component(&mut self, blob: &Blob) -> Result<Vec<u8>, Error> {
        if let Some(kept) = self.store.component(blob) {
            return Ok(kept);
        }
        let component = self.registry()?.blob(blob)?;
        self.store.keep_component(&component);
        Ok(component)
    }

    /// Looks for a signature of the manifest by this key, in both places where cosign puts them.
    fn verify(&mut self, manifest: &[u8], key: &PublicKey) -> Result<(), Error> {
        let digest = Digest::of(manifest);
        let is_kept = self.store.signature(&digest).is_some_and(|kept| key.has_signed(&digest, &kept))
            || self.store.bundle(&digest).is_some_and(|kept| key.has_signed_in(&kept, manifest));
        if is_kept {
            return Ok(());
        }
        let under_tag = self.signatures(&digest, key)?;
        if under_tag == Signers::Right {
            return Ok(());
        }
        match (under_tag, self.bundles(manifest, &digest, key)?) {
            (_, Signers::Right) => Ok(()),
            (Signers::Others(0), Signers::Others(0)) => Err(Error::Signature(format!(
                "it is not signed: there is no tag {} and no bundle of cosign 3",
                signature_tag(&digest)
            ))),
            (under_tag, in_bundles) => Err(Error::Signature(format!(
                "none of its {} signatures is of the key {}",
                under_tag.others() + in_bundles.others(),
                key.path().display()
            ))),
        }
    }

    /// The signatures under the tag `sha256-HEX.sig`.
    fn signatures(&mut self, digest: &Digest, key: &PublicKey) -> Result<Signers, Error> {
        let connection = self.registry()?;
        let Some(bytes) = connection.manifest(&signature_tag(digest))? else { return Ok(Signers::Others(0)) };
        let signatures = manifest::parse_signatures(&bytes)?;
        for SignatureLayer { payload, signature } in &signatures {
            let signed = Signed { payload: connection.blob(payload)?, signature: signature.clone() };
            if key.has_signed(digest, &signed) {
                self.store.keep_signature(digest, &signed);
                return Ok(Signers::Right);
            }
        }
        Ok(Signers::Others(signatures.len()))
    }

    /// The bundles in manifests that name this one as their subject. Everybody who may push can add
    /// one, so one that is damaged is no more than one by another key.
    fn bundles(&mut self, manifest: &[u8], digest: &Digest, key: &PublicKey) -> Result<Signers, Error> {
        let connection = self.registry()?;
        let Some(index) = connection.referrers(digest)? else { return Ok(Signers::Others(0)) };
        let referrers = manifest::parse_referrers(&index)?;
        for referrer in &referrers {
            let Some(bytes) = connection.manifest(&referrer.to_string())? else { continue };
            let blob = match manifest::parse_bundle(&bytes, digest) {
                Ok(blob) if Digest::of(&bytes) == *referrer => blob,
                _ => continue,
            };
            let bundle = connection.blob(&blob)?;
            if key.has_signed_in(&bundle, manifest) {
                self.store.keep_bundle(digest, &bundle);
                return Ok(Signers::Right);
            }
        }
        Ok(Signers::Others(referrers.len()))
    }
}

/// What was found in a place of signatures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signers {
    /// One by the right key.
    Right,
    /// So many by other keys.
    Others(usize),
}

impl Signers {
    fn others(self) -> usize {
        match self {
            Signers::Right => 0,
            Signers::Others(count) => count,
        }
    }
}
