//! Signatures of cosign 3: bundles in manifests that name the signed one as their subject. A
//! registry has a list of these manifests, or somebody has put it under a tag.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Place;
use crate::fake::{Fake, Reply, digest, reply, with_manifest};
use crate::interop::says_only_the_name;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registry/interop").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("a file of interop/")
}

/// Where the registry has its list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// It makes one.
    Own,
    /// It does not know of such lists. A tag has one.
    Tag,
}

/// What the registry has of signatures. A test changes what it lies about.
#[derive(Clone)]
struct Signatures {
    bundle: Vec<u8>,
    manifest: Value,
    list: Value,
}

impl Signatures {
    fn of(bundle: &str) -> Signatures {
        let bundle = bytes(bundle);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": BUNDLE,
            "annotations": {"dev.sigstore.bundle.content": "dsse-envelope"},
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": BUNDLE, "digest": digest(&bundle), "size": bundle.len()}],
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&bytes("wkg-manifest.json"))},
        });
        Signatures { list: Signatures::list(&manifest), bundle, manifest }
    }

    /// The list, with a manifest before it that is something else.
    fn list(manifest: &Value) -> Value {
        let (text, kind) = (manifest.to_string(), "application/vnd.oci.image.manifest.v1+json");
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": kind, "digest": digest(b"a bill of materials"), "size": 9, "artifactType": "text/spdx"},
            {"mediaType": kind, "digest": digest(text.as_bytes()), "size": text.len(), "artifactType": BUNDLE},
        ]})
    }

    fn start(self, list: List) -> Fake {
        let tag = digest(&bytes("wkg-manifest.json")).replace(':', "-");
        let manifest = self.manifest.to_string();
        let index = move || reply("200 OK", &format!("Content-Type: {INDEX}\r\n"), self.list.to_string().as_bytes());
        let blobs = [bytes("nofilter.wasm"), bytes("wkg-config.json"), self.bundle];
        Fake::start(move |asked| {
            let missing = || reply("404 Not Found", "", b"");
            let which = asked.rsplit('/').next().unwrap_or_default().split('?').next().unwrap_or_default();
            if asked.contains("/referrers/") {
                return if list == List::Own { index() } else { missing() };
            }
            if asked.contains("/manifests/") {
                return match which {
                    _ if which == tag => {
                        if list == List::Tag {
                            index()
                        } else {
                            missing()
                        }
                    }
                    _ if which.ends_with(".sig") => missing(),
                    _ if which == digest(manifest.as_bytes()) => with_manifest(&manifest),
                    _ => with_manifest(&String::from_utf8(bytes("wkg-manifest.json")).expect("text")),
                };
            }
            match blobs.iter().find(|blob| digest(blob) == which) {
                Some(blob) => reply("200 OK", "", blob),
                None => missing(),
            }
        })
    }
}

fn key(name: &str) -> String {
    path(name).to_str().expect("UTF-8").to_owned()
}

fn pull(fake: &Fake, key: &str) -> Result<(), String> {
    let place = Place::new();
    let reference = fake.reference();
    let arguments = ["pull", "--filter-key", key, "-o", "x.wasm", &reference];
    let output = place.tool(&arguments);
    if output.status.success() {
        assert_eq!(std::fs::read(place.path("x.wasm")).unwrap(), bytes("nofilter.wasm"));
        return Ok(());
    }
    assert!(!place.path("x.wasm").exists());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    Err(said.trim_end().to_owned())
}

#[test]
fn a_bundle_is_found_in_both_lists_and_holds_for_its_key_only() {
    for (bundle, own) in
        [("bundle-statement.json", "bundle-statement.pub"), ("bundle-message.json", "bundle-message.pub")]
    {
        for list in [List::Own, List::Tag] {
            let fake = Signatures::of(bundle).start(list);
            assert_eq!(pull(&fake, &key(own)), Ok(()), "{bundle}");
        }
        let said = pull(&Signatures::of(bundle).start(List::Own), &key("ours.pub")).unwrap_err();
        assert!(said.contains("none of its 1 signatures is of the key "), "{said}");
    }
}

#[test]
fn a_bundle_that_was_accepted_is_kept_and_serves_without_the_registry() {
    let (place, fake) = (Place::new(), Signatures::of("bundle-statement.json").start(List::Own));
    let pinned = format!("{}@{}", fake.reference(), digest(&bytes("wkg-manifest.json")));
    let serves = ["--filter-key", &key("bundle-statement.pub"), "--wasm-filter", &pinned, "memory", "1M"];
    says_only_the_name(&place.launch(&serves).start().stop().stderr);
    let asked = fake.heads().len();
    says_only_the_name(&place.launch(&serves).start().stop().stderr);
    assert_eq!(fake.heads().len(), asked, "the registry was not asked again");
}

#[test]
fn a_bundle_that_is_not_a_signature_of_this_manifest_is_none() {
    let good = Signatures::of("bundle-statement.json");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.manifest.clone();
        change(&mut manifest);
        Signatures { list: Signatures::list(&manifest), manifest, ..good.clone() }
    };
    let with = |bundle: Vec<u8>| {
        let mut manifest = good.manifest.clone();
        manifest["layers"][0]["digest"] = digest(&bundle).into();
        manifest["layers"][0]["size"] = bundle.len().into();
        Signatures { list: Signatures::list(&manifest), manifest, bundle }
    };
    let mut broken: Value = serde_json::from_slice(&good.bundle).unwrap();
    broken["dsseEnvelope"]["payloadType"] = "text/plain".into();
    let mut other_list = good.list.clone();
    other_list["manifests"][1]["digest"] = digest(b"what the registry sends is another").into();
    for (what, signatures) in [
        ("about another manifest", changed(&|manifest| manifest["subject"]["digest"] = digest(b"x").into())),
        ("about nothing", changed(&|manifest| manifest["subject"] = Value::Null)),
        (
            "two layers",
            changed(&|manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"] = json!([layer, layer]);
            }),
        ),
        ("a layer that is no bundle", changed(&|manifest| manifest["layers"][0]["mediaType"] = "text/plain".into())),
        ("a bundle of a GiB", changed(&|manifest| manifest["layers"][0]["size"] = json!(1 << 30))),
        ("another type in the envelope", with(broken.to_string().into_bytes())),
        ("no JSON", with(b"[".repeat(10_000))),
        ("a digest that is not the manifest's", Signatures { list: other_list, ..good.clone() }),
    ] {
        let said = pull(&signatures.start(List::Own), &key("bundle-statement.pub")).unwrap_err();
        assert!(said.contains("none of its 1 signatures is of the key "), "{what}: {said}");
    }
    // A statement about another manifest, in a manifest that says that it is about this one.
    let moved = String::from_utf8(bytes("wkg-manifest.json")).unwrap().replacen('{', "{ ", 1);
    let mut manifest = good.manifest.clone();
    manifest["subject"]["digest"] = digest(moved.as_bytes()).into();
    let (text, list, bundle) = (manifest.to_string(), Signatures::list(&manifest), good.bundle.clone());
    let fake = Fake::start(move |asked| match asked {
        _ if asked.contains("/referrers/") => {
            reply("200 OK", &format!("Content-Type: {INDEX}\r\n"), list.to_string().as_bytes())
        }
        _ if asked.contains(".sig") => reply("404 Not Found", "", b""),
        _ if asked.contains(&digest(text.as_bytes())) => with_manifest(&text),
        _ if asked.contains("/manifests/") => with_manifest(&moved),
        _ => reply("200 OK", "", &bundle),
    });
    let said = pull(&fake, &key("bundle-statement.pub")).unwrap_err();
    assert!(said.contains("none of its 1 signatures is of the key "), "{said}");
}

#[test]
fn a_list_of_signatures_that_lies_is_one_line() {
    let good = Signatures::of("bundle-statement.json");
    let says = |list: Value, right: &str| {
        let said = pull(&Signatures { list, ..good.clone() }.start(List::Own), &key("bundle-statement.pub"));
        assert!(said.as_ref().is_err_and(|said| said.contains(right)), "{right}: {said:?}");
    };
    says(json!([]), "the list of signatures is damaged: ");
    says(json!({"schemaVersion": 1, "manifests": []}), "the list of signatures is not an index of manifests");
    says(json!({"schemaVersion": 2, "manifests": []}), "it is not signed: there is no tag sha256-");
    // No more of a long list are looked at than of a short one.
    let mut long = good.list.clone();
    long["manifests"] = vec![long["manifests"][1].clone(); 1000].into();
    let fake = Signatures { list: long, ..good.clone() }.start(List::Own);
    assert!(pull(&fake, &key("ours.pub")).is_err_and(|said| said.contains("none of its 32 signatures")));
    assert!(fake.heads().len() < 100, "{}", fake.heads().len());
    let endless = Fake::start(|asked| match asked {
        _ if asked.contains("/referrers/") => {
            Reply::Endless(format!("HTTP/1.1 200 OK\r\nContent-Type: {INDEX}\r\n\r\n").into_bytes())
        }
        _ if asked.contains(".sig") => reply("404 Not Found", "", b""),
        _ => with_manifest(&String::from_utf8(bytes("wkg-manifest.json")).expect("text")),
    });
    let said = pull(&endless, &key("ours.pub")).unwrap_err();
    assert!(said.contains(" sends more than 1048576 bytes"), "{said}");
}
