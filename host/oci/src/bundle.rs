//! Signatures as cosign 3 makes them with a key pair: bundles of sigstore.
//!
//! A bundle is a JSON text. `cosign sign` puts a statement of in-toto into it, whose subject is the
//! digest of the manifest, in an envelope (DSSE) whose signature covers the statement and its type.
//! Only a statement that says "signed" counts: another one of the same key may say that the
//! component has a fault. A bundle can also have the signature of the manifest's own bytes.
//!
//! The key is the one that the user gives. So what a bundle has of keys, certificates and
//! transparency logs is not read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::{Error, shown};
use crate::manifest::{MAX_BUNDLE_BYTES, is_bundle};

/// The media type of a statement in an envelope.
const STATEMENT: &str = "application/vnd.in-toto+json";

/// The types of statements: their versions.
const STATEMENT_TYPES: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];

/// What a statement says that is a signature and nothing else.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";

/// What a bundle has the signature of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes, which say that the manifest with this digest is signed.
    Statement {
        /// What the signature covers.
        covered: Vec<u8>,
        /// The manifests.
        manifests: Vec<Digest>,
    },
    /// The bytes of the manifest.
    Manifest,
}

/// A bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// What is signed.
    pub content: Content,
    /// The signature.
    pub signature: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    media_type: String,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<MessageSignature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct MessageSignature {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<StatementSubject>,
}

#[derive(Deserialize)]
struct StatementSubject {
    digest: BTreeMap<String, String>,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// It is none, or one that says something else than that a manifest is signed.
    pub fn parse(bytes: &[u8]) -> Result<Bundle, Error> {
        let wrong = |why: String| Error::content(format!("the bundle {why}"));
        if bytes.len() as u64 > MAX_BUNDLE_BYTES {
            return Err(wrong(format!("is larger than {} KiB", MAX_BUNDLE_BYTES >> 10)));
        }
        let damaged = |error: serde_json::Error| wrong(format!("is damaged: {}", shown(&error.to_string())));
        let text: Text = serde_json::from_slice(bytes).map_err(damaged)?;
        if !is_bundle(&text.media_type) {
            return Err(wrong(format!("is of the type '{}'", shown(&text.media_type))));
        }
        let base64 = |text: &str, what: &str| {
            STANDARD.decode(text).map_err(|_| wrong(format!("has a {what} that is not in base64")))
        };
        match (text.dsse_envelope, text.message_signature) {
            (Some(envelope), None) => {
                if envelope.payload_type != STATEMENT {
                    let found = shown(&envelope.payload_type);
                    return Err(wrong(format!("has an envelope of the type '{found}'")));
                }
                let [signature] = &envelope.signatures[..] else {
                    let count = envelope.signatures.len();
                    return Err(wrong(format!("has an envelope with {count} signatures, and one is possible")));
                };
                let payload = base64(&envelope.payload, "payload")?;
                let statement: Statement = serde_json::from_slice(&payload).map_err(damaged)?;
                if !STATEMENT_TYPES.contains(&statement.kind.as_str()) || statement.predicate_type != SIGNED {
                    let says = shown(&statement.predicate_type);
                    return Err(wrong(format!("says '{says}', and not that something is signed")));
                }
                let hex = statement.subject.iter().filter_map(|subject| subject.digest.get("sha256"));
                let manifests = hex.filter_map(|hex| Digest::parse(&format!("sha256:{hex}"))).collect();
                let content = Content::Statement { covered: covered(&envelope.payload_type, &payload), manifests };
                Ok(Bundle { content, signature: base64(&signature.sig, "signature")? })
            }
            (None, Some(message)) => {
                Ok(Bundle { content: Content::Manifest, signature: base64(&message.signature, "signature")? })
            }
            _ => Err(wrong("has no signature, or two".into())),
        }
    }
}

/// What the signature of an envelope covers: the type and the payload, each after its length.
fn covered(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(predicate: &str, hex: &str) -> String {
        format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{hex}"}}}}],
            "predicateType":"{predicate}","predicate":{{}}}}"#
        )
    }

    fn envelope(statement: &str) -> String {
        let payload = STANDARD.encode(statement);
        format!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{{"publicKey":
            {{"hint":"x"}}}},"dsseEnvelope":{{"payload":"{payload}","payloadType":"application/vnd.in-toto+json",
            "signatures":[{{"sig":"c2ln","keyid":""}}]}}}}"#
        )
    }

    /// The example of the specification of DSSE.
    #[test]
    fn a_signature_covers_the_type_and_the_payload() {
        let example = covered("http://example.com/HelloWorld", b"hello world");
        assert_eq!(example, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_bundle_names_the_manifests_that_are_signed() {
        let digest = Digest::of(b"x");
        let bundle = Bundle::parse(envelope(&statement(SIGNED, &digest.hex())).as_bytes()).unwrap();
        assert_eq!(bundle.signature, b"sig");
        let Content::Statement { covered, manifests } = bundle.content else { panic!("a statement") };
        assert!(covered.starts_with(b"DSSEv1 28 application/vnd.in-toto+json ") && manifests == [digest]);
    }

    #[test]
    fn what_is_no_signature_is_named() {
        let good = envelope(&statement(SIGNED, &"0a".repeat(32)));
        assert!(Bundle::parse(good.as_bytes()).is_ok());
        for (bad, why) in [
            (String::new(), "the bundle is damaged"),
            ("[".repeat(100_000), "the bundle is damaged"),
            (" ".repeat(MAX_BUNDLE_BYTES as usize + 1), "the bundle is larger than 256 KiB"),
            (
                good.replace("bundle.v0.3", "b\\u0007"),
                "the bundle is of the type 'application/vnd.dev.sigstore.b\\u{7}",
            ),
            (good.replace("in-toto", "x"), "the bundle has an envelope of the type 'application/vnd.x+json'"),
            (good.replace(r#""sig":"c2ln""#, r#""sig":"?""#), "the bundle has a signature that is not in base64"),
            (good.replace(r#""payload":""#, r#""payload":"?"#), "the bundle has a payload that is not in base64"),
            (good.replace(r#"[{"sig":"c2ln","keyid":""}]"#, "[]"), "the bundle has an envelope with 0 signatures"),
            (good.replace("dsseEnvelope", "other"), "the bundle has no signature, or two"),
            (
                good.replace(r#""dsseEnvelope""#, r#""messageSignature":{"signature":"c2ln"},"dsseEnvelope""#),
                "the bundle has no signature, or two",
            ),
            (
                envelope(&statement("https://cosign.sigstore.dev/attestation/vuln/v1", &"0a".repeat(32))),
                "the bundle says 'https://cosign.sigstore.dev/attestation/vuln/v1', and not that something is signed",
            ),
            (envelope("{}"), "the bundle is damaged"),
        ] {
            let error = Bundle::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(why) && !error.chars().any(char::is_control), "{why}: {error}");
        }
    }
}
