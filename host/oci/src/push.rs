//! Pushes a component, and its signature.

use std::collections::BTreeMap;

use crate::child::{Access, Connection, Purpose};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, MAX_COMPONENT_BYTES, MAX_SIGNATURES, SignatureLayer, signature_tag};
use crate::reference::Reference;
use crate::signature::{PrivateKey, Signed};

/// Pushes a component under the tag of the reference. Signs it if a key is given. Returns the
/// digest of its manifest, which depends on the component and the annotations alone.
///
/// # Errors
/// One line: the reference has no tag or a digest, or the registry cannot be reached or refuses.
pub fn push(
    component: &[u8],
    annotations: BTreeMap<String, String>,
    reference: &Reference,
    access: Access,
    key: Option<&PrivateKey>,
) -> Result<Digest, Error> {
    let tag = match (&reference.tag, &reference.digest) {
        (Some(tag), None) => tag,
        (_, Some(_)) => return Err(Error::Reference("a component is pushed under a tag, without a digest".into())),
        (None, None) => return Err(Error::Reference("a component is pushed under a tag".into())),
    };
    if component.len() as u64 > MAX_COMPONENT_BYTES {
        return Err(Error::content(format!("it is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)));
    }
    let config = manifest::component_config(component)?;
    let mut connection = Connection::open(reference, access, Purpose::Push)?;
    let blob = connection.put_blob(component)?;
    let config = connection.put_blob(&config)?;
    let manifest = manifest::of_component(&config, &blob, annotations);
    let digest = Digest::of(&manifest);
    if let Some(key) = key {
        // First, so that nobody finds the component under its tag without its signature.
        sign(&mut connection, &key.sign(&reference.identity(), &digest)?, key, &digest)?;
    }
    connection.put_manifest(tag, &manifest)
}

/// Adds a signature to those that the manifest has. One by the same key is there at most once.
fn sign(connection: &mut Connection, signed: &Signed, key: &PrivateKey, digest: &Digest) -> Result<(), Error> {
    let tag = signature_tag(digest);
    let mut signatures = match connection.manifest(&tag)? {
        Some(bytes) => manifest::parse_signatures(&bytes)?,
        None => Vec::new(),
    };
    let own = key.public()?;
    for SignatureLayer { payload, signature } in &signatures {
        let there = Signed { payload: connection.blob(payload)?, signature: signature.clone() };
        if own.has_signed(digest, &there) {
            return Ok(());
        }
    }
    if signatures.len() >= MAX_SIGNATURES {
        return Err(Error::Signature(format!("it has {MAX_SIGNATURES} signatures already")));
    }
    let payload = connection.put_blob(&signed.payload)?;
    signatures.push(SignatureLayer { payload, signature: signed.signature.clone() });
    let config = connection.put_blob(&manifest::signatures_config(&signatures))?;
    connection.put_manifest(&tag, &manifest::of_signatures(&config, &signatures))?;
    Ok(())
}
