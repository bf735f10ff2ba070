//! Manifests: what a registry keeps for a component and for its signatures.
//!
//! The layout is that of the CNCF's "Wasm OCI Artifact layout", which `wkg` writes and reads. The
//! manifest names two blobs: a configuration (`application/vnd.wasm.config.v0+json`) and one layer,
//! the component itself (`application/wasm`).
//!
//! Cosign's signatures of a manifest are another manifest in the same place, with the tag
//! `sha256-HEX.sig`. Each layer is a signed text, and an annotation has the signature. Cosign 3
//! makes a manifest for each signature, which names the signed one as its subject. Its layer is a
//! bundle ([`bundle`](crate::bundle)). An index has the list of these manifests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, shown};

/// The largest manifest that is read, in bytes. Manifests of components have some hundred bytes,
/// and some annotations.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// The largest component, in bytes: what the sandbox loads.
pub const MAX_COMPONENT_BYTES: u64 = 64 << 20;

/// The largest text that is signed, in bytes. Cosign's have 250, and annotations of the signer's.
pub const MAX_PAYLOAD_BYTES: u64 = 64 << 10;

/// The largest bundle, in bytes. Those of a key pair have a KiB; certificates and the answers of a
/// log take some more.
pub const MAX_BUNDLE_BYTES: u64 = 256 << 10;

/// The most signatures of a component that are looked at, of each of the two sorts.
pub const MAX_SIGNATURES: usize = 32;

/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index, which is a list of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const SIGNED_TEXT: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The media type of a bundle, and of the manifests that have one.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The media type of a bundle before version 0.3, without its version.
const EARLIER_BUNDLE: &str = "application/vnd.dev.sigstore.bundle+json;version=0.";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl Blob {
    /// The blob with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Blob {
        Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
    }
}

/// A signature of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLayer {
    /// The signed text.
    pub payload: Blob,
    /// The signature in base64.
    pub signature: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Subject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

/// The manifest that another one is about.
#[derive(Deserialize, Serialize)]
struct Subject {
    digest: String,
}

/// A list of manifests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Referrer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    artifact_type: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn new(media_type: &str, blob: &Blob) -> Descriptor {
        let (media_type, digest) = (media_type.to_owned(), blob.digest.to_string());
        Descriptor { media_type, digest, size: blob.size, annotations: None }
    }

    fn blob(&self, what: &str, limit: u64) -> Result<Blob, Error> {
        let digest = Digest::parse(&self.digest)
            .ok_or_else(|| Error::content(format!("the digest of {what} is '{}', not sha256", shown(&self.digest))))?;
        if self.size > limit {
            return Err(Error::content(format!("{what} has {} bytes, and {limit} are allowed", self.size)));
        }
        Ok(Blob { digest, size: self.size })
    }
}

fn parse(bytes: &[u8]) -> Result<(Descriptor, Vec<Descriptor>), Error> {
    let manifest: Manifest = read(bytes, "the manifest")?;
    parts(manifest).map(|(config, layers, _)| (config, layers))
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(Error::content(format!("{what} is larger than {} KiB", MAX_MANIFEST_BYTES >> 10)));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Error::content(format!("{what} is damaged: {}", shown(&error.to_string()))))
}

fn parts(manifest: Manifest) -> Result<(Descriptor, Vec<Descriptor>, Option<Subject>), Error> {
    match manifest.media_type.as_deref() {
        None | Some(MANIFEST) => {}
        Some(INDEX) => return Err(Error::content("it is an index of several images, not a component")),
        Some(other) => return Err(Error::content(format!("its manifest is of the type '{}'", shown(other)))),
    }
    if manifest.schema_version != 2 {
        return Err(Error::content(format!("the manifest has version {}, not 2", manifest.schema_version)));
    }
    match (manifest.config, manifest.layers) {
        (Some(config), Some(layers)) => Ok((config, layers, manifest.subject)),
        _ => Err(Error::content("the manifest names no configuration or no layers")),
    }
}

/// Reads the manifest of a component. Returns the component's blob.
///
/// # Errors
/// It is the manifest of something else, or the component is too large.
pub fn parse_component(bytes: &[u8]) -> Result<Blob, Error> {
    let (config, layers) = parse(bytes)?;
    if config.media_type != CONFIG {
        let found = shown(&config.media_type);
        return Err(Error::content(format!("it is not a component: its configuration is of the type '{found}'")));
    }
    match &layers[..] {
        [layer] if layer.media_type == LAYER => layer.blob("the component", MAX_COMPONENT_BYTES),
        [layer] => Err(Error::content(format!(
            "it is not a component: its layer is of the type '{}'",
            shown(&layer.media_type)
        ))),
        _ => Err(Error::content(format!("it has {} layers, and a component has one", layers.len()))),
    }
}

/// Reads a manifest of signatures, at most [`MAX_SIGNATURES`]. Layers of another kind are left out.
///
/// # Errors
/// It is not a manifest, or names a digest or a size that cannot be.
pub fn parse_signatures(bytes: &[u8]) -> Result<Vec<SignatureLayer>, Error> {
    let (_, layers) = parse(bytes)?;
    let signatures = layers.iter().filter(|layer| layer.media_type == SIGNED_TEXT);
    let signature = |layer: &Descriptor| {
        let signature = layer.annotations.as_ref()?.get(SIGNATURE)?.clone();
        Some(layer.blob("a signed text", MAX_PAYLOAD_BYTES).map(|payload| SignatureLayer { payload, signature }))
    };
    signatures.filter_map(signature).take(MAX_SIGNATURES).collect()
}

/// Whether this is the media type of a bundle.
#[must_use]
pub fn is_bundle(media_type: &str) -> bool {
    media_type == BUNDLE
        || media_type.strip_prefix(EARLIER_BUNDLE).is_some_and(|minor| ["1", "2", "3"].contains(&minor))
}

/// Reads an index of the manifests that are about another one. Returns those that have bundles, at
/// most [`MAX_SIGNATURES`].
///
/// # Errors
/// It is no index.
pub fn parse_referrers(bytes: &[u8]) -> Result<Vec<Digest>, Error> {
    let index: Index = read(bytes, "the list of signatures")?;
    let is_right = index.schema_version == 2 && index.media_type.as_deref().is_none_or(|found| found == INDEX);
    let Some(manifests) = index.manifests.filter(|_| is_right) else {
        return Err(Error::content("the list of signatures is not an index of manifests"));
    };
    let bundles = manifests.iter().filter(|one| one.artifact_type.as_deref().is_some_and(is_bundle));
    Ok(bundles.filter_map(|one| Digest::parse(&one.digest)).take(MAX_SIGNATURES).collect())
}

/// Reads the manifest of a bundle that is about the manifest with this digest. Returns the bundle's
/// blob.
///
/// # Errors
/// It is the manifest of something else, or the bundle is too large.
pub fn parse_bundle(bytes: &[u8], about: &Digest) -> Result<Blob, Error> {
    let (_, layers, subject) = parts(read(bytes, "the manifest")?)?;
    if subject.and_then(|subject| Digest::parse(&subject.digest)) != Some(*about) {
        return Err(Error::content("the manifest of a bundle is about something else"));
    }
    match &layers[..] {
        [layer] if is_bundle(&layer.media_type) => layer.blob("a bundle", MAX_BUNDLE_BYTES),
        _ => Err(Error::content("the manifest of a bundle has not one layer, or one of another type")),
    }
}

/// The tag under which the index of the manifests that are about this one is, in a registry that
/// makes no such index itself.
#[must_use]
pub fn referrers_tag(manifest: &Digest) -> String {
    format!("sha256-{}", manifest.hex())
}

/// The manifest of a component.
#[must_use]
pub fn of_component(config: &Blob, component: &Blob, annotations: BTreeMap<String, String>) -> Vec<u8> {
    let layers = vec![Descriptor::new(LAYER, component)];
    write(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.into()),
        artifact_type: None,
        subject: None,
        config: Some(Descriptor::new(CONFIG, config)),
        layers: Some(layers),
        annotations: Some(annotations),
    })
}

/// The manifest of signatures.
#[must_use]
pub fn of_signatures(config: &Blob, signatures: &[SignatureLayer]) -> Vec<u8> {
    let layer = |each: &SignatureLayer| {
        let annotations = Some(BTreeMap::from([(SIGNATURE.to_owned(), each.signature.clone())]));
        Descriptor { annotations, ..Descriptor::new(SIGNED_TEXT, &each.payload) }
    };
    write(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.into()),
        artifact_type: None,
        subject: None,
        config: Some(Descriptor::new(IMAGE_CONFIG, config)),
        layers: Some(signatures.iter().map(layer).collect()),
        annotations: None,
    })
}

/// The tag under which cosign keeps the signatures of a manifest.
#[must_use]
pub fn signature_tag(manifest: &Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

/// The configuration of a component: what it imports and exports. The time in it is always the
/// same, so that the same component has the same digest whenever it is pushed.
///
/// # Errors
/// The bytes are not a component.
pub fn component_config(component: &[u8]) -> Result<Vec<u8>, Error> {
    let (imports, exports) =
        interfaces(component).map_err(|why| Error::content(format!("it is not a component: {}", shown(&why))))?;
    Ok(write(&serde_json::json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [Digest::of(component).to_string()],
        "component": {"exports": exports, "imports": imports, "target": null},
    })))
}

/// The names of a component's imports and exports, without those of the components in it.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>), String> {
    let damaged = |error: wasmparser::BinaryReaderError| error.to_string();
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut depth = 0;
    for payload in wasmparser::Parser::new(0).parse_all(component) {
        match payload.map_err(damaged)? {
            wasmparser::Payload::Version { encoding: wasmparser::Encoding::Module, .. } if depth == 0 => {
                return Err("it is a core module".into());
            }
            wasmparser::Payload::ModuleSection { .. } | wasmparser::Payload::ComponentSection { .. } => depth += 1,
            wasmparser::Payload::End(_) if depth > 0 => depth -= 1,
            wasmparser::Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import.map_err(damaged)?.name.name.to_owned());
                }
            }
            wasmparser::Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(damaged)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

/// The configuration of a manifest of signatures: that of an image whose layers are these.
#[must_use]
pub fn signatures_config(signatures: &[SignatureLayer]) -> Vec<u8> {
    let ids: Vec<String> = signatures.iter().map(|each| each.payload.digest.to_string()).collect();
    write(&serde_json::json!({
        "architecture": "", "created": "0001-01-01T00:00:00Z", "history": ids.iter().map(|_| serde_json::json!({
            "created": "0001-01-01T00:00:00Z",
        })).collect::<Vec<_>>(), "os": "", "rootfs": {"type": "layers", "diff_ids": ids}, "config": {},
    }))
}

fn write(value: &impl Serialize) -> Vec<u8> {
    // It fails only for maps whose keys are not text.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component() -> Vec<u8> {
        let (config, layer) = (Blob::of(b"{}"), Blob::of(b"component"));
        of_component(&config, &layer, BTreeMap::from([("a".into(), "b".into())]))
    }

    #[test]
    fn a_manifest_is_read_as_it_is_written() {
        assert_eq!(parse_component(&component()).unwrap(), Blob::of(b"component"));
        let signatures = vec![SignatureLayer { payload: Blob::of(b"text"), signature: "c2ln".into() }; 2];
        let bytes = of_signatures(&Blob::of(&signatures_config(&signatures)), &signatures);
        assert_eq!(parse_signatures(&bytes).unwrap(), signatures);
    }

    /// Its fields are those that `wkg` and Go's libraries write: some that we do not, and nulls.
    #[test]
    fn a_manifest_of_another_program_is_read() {
        let digest = Digest::of(b"x");
        let text = format!(
            r#"{{"schemaVersion":2,"artifactType":"application/vnd.wasm.component.v1+wasm","config":{{"mediaType":
            "{CONFIG}","digest":"{digest}","size":9,"annotations":null}},"layers":[{{"mediaType":"{LAYER}","digest":
            "{digest}","size":1,"urls":null,"annotations":{{"a":"b"}}}}],"subject":null,"annotations":null}}"#
        );
        assert_eq!(parse_component(text.as_bytes()).unwrap(), Blob::of(b"x"));
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_said() {
        let good = String::from_utf8(component()).unwrap();
        let layer = &good[good.find("[{").unwrap()..=good.find("}]").unwrap() + 1];
        for (bad, why) in [
            (String::new(), "the manifest is damaged"),
            ("[".repeat(100_000), "the manifest is damaged"),
            (" ".repeat(MAX_MANIFEST_BYTES + 1), "the manifest is larger than 1024 KiB"),
            (good.replace("image.manifest", "image.index"), "it is an index of several images, not a component"),
            (
                good.replace("oci.image.manifest", "x\\u0007"),
                "its manifest is of the type 'application/vnd.x\\u{7}.v1+json'",
            ),
            (good.replace("Version\":2", "Version\":1"), "the manifest has version 1, not 2"),
            (good.replace("vnd.wasm.config.v0", "vnd.oci.image.config.v1"), "it is not a component: its configuration"),
            (good.replace("application/wasm", "application/gzip"), "it is not a component: its layer is of the type"),
            (good.replace(layer, "[]"), "it has 0 layers, and a component has one"),
            (good.replace(layer, &format!("[{0},{0}]", &layer[1..layer.len() - 1])), "it has 2 layers"),
            (good.replace("\"size\":9", "\"size\":67108865"), "the component has 67108865 bytes, and 67108864 are"),
            (good.replace("\"size\":9", "\"size\":-1"), "the manifest is damaged"),
            (good.replace("sha256:", "sha512:"), "the digest of the component is 'sha512:"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), "the manifest names no configuration or no layers"),
        ] {
            let error = parse_component(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why) && !error.chars().any(char::is_control), "{why}: {error}");
        }
    }

    #[test]
    fn no_more_signatures_are_looked_at_than_the_limit() {
        let many = vec![SignatureLayer { payload: Blob::of(b"text"), signature: "c2ln".into() }; 1000];
        assert_eq!(parse_signatures(&of_signatures(&Blob::of(b"{}"), &many)).unwrap().len(), MAX_SIGNATURES);
    }

    #[test]
    fn a_module_is_no_component() {
        let error = component_config(b"\0asm\x01\0\0\0").unwrap_err().to_string();
        assert!(error.starts_with("it is not a component: it is a core module"), "{error}");
        assert!(component_config(b"\0asm\x0d\0\x01\0").is_ok());
    }
}
