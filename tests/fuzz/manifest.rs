//! Fuzzing of what a registry sends: manifests of components and of signatures, lists of manifests,
//! bundles, and references.
//!
//! The inputs are mutations of good manifests. Reading one must not panic, and gives either blobs
//! within the limits or an error of one short line.

use rbdkit_oci::bundle::{Bundle, Content};
use rbdkit_oci::manifest::{
    Blob, MAX_BUNDLE_BYTES, MAX_COMPONENT_BYTES, MAX_PAYLOAD_BYTES, MAX_SIGNATURES, SignatureLayer, component_config,
    of_component, of_signatures, parse_bundle, parse_component, parse_referrers, parse_signatures, signatures_config,
};
use rbdkit_oci::{Digest, Reference};
use rbdkit_tests::{Rng, seed};

use crate::Budget;

/// Pieces that JSON and its readers are sensitive to.
const PIECES: [&[u8]; 14] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\u0000",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"null",
    b"\xff\xfe",
    b"[[[[[[[[[[[[[[[[",
];

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let end = (at + 1 + rng.below(40) as usize).min(bytes.len());
    match rng.below(6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
            bytes.splice(at..at, piece.iter().copied());
        }
        3 => {
            let copied = bytes[at.min(end)..end].to_vec();
            let to = rng.below(bytes.len() as u64 + 1) as usize;
            bytes.splice(to..to, copied);
        }
        4 if rng.chance(5) => bytes.truncate(at),
        _ => {
            let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
            bytes.splice(at..end.max(at), piece.iter().copied());
        }
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let component = b"\0asm\x0d\0\x01\0";
    let config = component_config(component).expect("an empty component");
    let annotations = [("a", "b"), ("c", "d")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let layers = vec![SignatureLayer { payload: Blob::of(b"text"), signature: "c2ln".into() }; 3];
    let signatures = of_signatures(&Blob::of(&signatures_config(&layers)), &layers);
    vec![of_component(&Blob::of(&config), &Blob::of(component), annotations.into()), signatures]
}

/// A bundle that another program made.
const BUNDLE: &[u8] = include_bytes!("../tests/registry/interop/bundle-statement.json");

/// The manifest of a bundle, and a list with it.
fn bundles(about: &Digest) -> [Vec<u8>; 2] {
    let (blob, kind) = (Blob::of(BUNDLE), "application/vnd.dev.sigstore.bundle.v0.3+json");
    let (digest, size) = (blob.digest, blob.size);
    let layer = format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#);
    let manifest = format!(
        r#"{{"schemaVersion":2,"artifactType":"{kind}","config":{layer},"layers":[{layer}],
        "subject":{{"digest":"{about}"}}}}"#
    );
    let list = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","artifactType":"{kind}"}}]}}"#);
    [manifest.into_bytes(), list.into_bytes()]
}

#[test]
fn fuzz_bundles() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed ^ 0xb0d1e);
    let about = Digest::of(b"a manifest");
    let [manifest, list] = bundles(&about);
    let is_well = Bundle::parse(BUNDLE).is_ok() && parse_bundle(&manifest, &about).is_ok();
    assert!(is_well && parse_referrers(&list).is_ok_and(|list| list.len() == 1), "what is mutated is well");
    let corpus = [manifest, list, BUNDLE.to_vec()];
    let budget = Budget::new(20_000);
    let (mut round, mut accepted) = (0, 0);
    while budget.goes_on(round) {
        let mut input = corpus[rng.below(3) as usize].clone();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut rng, &mut input);
        }
        let why = format!("seed {seed} round {round}: {}", String::from_utf8_lossy(&input));
        match parse_bundle(&input, &about) {
            Ok(blob) => assert!(blob.size <= MAX_BUNDLE_BYTES, "{why}"),
            Err(error) => line(&error, &why),
        }
        match parse_referrers(&input) {
            Ok(list) => assert!(list.len() <= MAX_SIGNATURES, "{why}"),
            Err(error) => line(&error, &why),
        }
        match Bundle::parse(&input) {
            Ok(Bundle { content: Content::Statement { covered, .. }, .. }) => {
                assert!(covered.len() <= input.len() && covered.starts_with(b"DSSEv1 28 "), "{why}");
                accepted += 1;
            }
            Ok(_) => {}
            Err(error) => line(&error, &why),
        }
        round += 1;
    }
    println!("{round} bundles, {accepted} of them accepted");
}

fn line(error: &rbdkit_oci::Error, why: &str) {
    let line = error.to_string();
    assert!(!line.is_empty() && line.len() < 1000 && !line.chars().any(char::is_control), "{why}: {line:?}");
}

#[test]
fn fuzz_manifests() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let (mut rng, corpus) = (Rng::new(seed ^ 0x0c1), corpus());
    assert!(parse_component(&corpus[0]).is_ok() && parse_signatures(&corpus[1]).is_ok(), "what is mutated is well");
    let budget = Budget::new(20_000);
    let (mut round, mut accepted) = (0, 0);
    while budget.goes_on(round) {
        let mut input = corpus[rng.below(2) as usize].clone();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut rng, &mut input);
        }
        let why = format!("seed {seed} round {round}: {}", String::from_utf8_lossy(&input));
        match parse_component(&input) {
            Ok(blob) => assert!(blob.size <= MAX_COMPONENT_BYTES, "{why}"),
            Err(error) => line(&error, &why),
        }
        match parse_signatures(&input) {
            Ok(layers) => {
                assert!(layers.len() <= MAX_SIGNATURES, "{why}");
                assert!(layers.iter().all(|layer| layer.payload.size <= MAX_PAYLOAD_BYTES), "{why}");
                accepted += 1;
            }
            Err(error) => line(&error, &why),
        }
        if let Err(error) = component_config(&input) {
            line(&error, &why);
        }
        round += 1;
    }
    println!("{round} manifests, {accepted} of them accepted");
}

#[test]
fn fuzz_references() {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed ^ 0x4ef);
    let budget = Budget::new(20_000);
    let (mut round, mut accepted) = (0, 0);
    let good = format!("oci://[::1]:5000/a/b_c:1@sha256:{}", "0a".repeat(32));
    while budget.goes_on(round) {
        let mut input = good.clone().into_bytes();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut rng, &mut input);
        }
        let text = String::from_utf8_lossy(&input);
        match Reference::parse(&text) {
            Ok(reference) => {
                let shown = reference.to_string();
                assert_eq!(Reference::parse(&shown).ok(), Some(reference), "seed {seed} round {round}: {text:?}");
                assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "seed {seed} round {round}: {text:?}");
                accepted += 1;
            }
            Err(error) => {
                let line = error.to_string();
                assert!(!line.chars().any(char::is_control), "seed {seed} round {round}: {line:?}");
            }
        }
        round += 1;
    }
    println!("{round} references, {accepted} of them accepted");
}
