//! Other programs' artefacts, and ours that other programs have accepted. They are files in
//! `interop/`, so that these tests need neither the programs nor a network. Its README says how
//! each was made.

use std::path::{Path, PathBuf};
use std::process::Command;

use rbdkit_tests::wait;
use serde_json::{Value, json};

use crate::fake::{Fake, digest, reply, with_manifest};
use crate::{Place, Registry};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registry/interop").join(name)
}

fn text_path(name: &str) -> String {
    path(name).to_str().expect("UTF-8").to_owned()
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("a file of interop/")
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).expect("JSON")
}

/// A registry that has what `wkg` pushed and sigstore signed.
fn theirs() -> Fake {
    let signatures = digest(&bytes("wkg-manifest.json")).replace(':', "-") + ".sig";
    let blobs = ["nofilter.wasm", "wkg-config.json", "sigstore-payload.json"].map(bytes);
    Fake::start(move |asked| {
        let which = asked.rsplit('/').next().unwrap_or_default();
        if asked.contains("/manifests/") {
            let name = if which == signatures { "sigstore-manifest.json" } else { "wkg-manifest.json" };
            return with_manifest(&String::from_utf8(bytes(name)).expect("text"));
        }
        match blobs.iter().find(|blob| digest(blob) == which) {
            Some(blob) => reply("200 OK", "", blob),
            None => reply("404 Not Found", "", b""),
        }
    })
}

/// The fixture is an older build of nofilter. So the server says that it is not its own of that
/// name, and nothing else.
pub fn says_only_the_name(stderr: &str) {
    let others: Vec<&str> = stderr.lines().filter(|line| !line.contains("calls itself nofilter, and is not")).collect();
    assert!(others.is_empty() && stderr.lines().count() <= 1, "{stderr}");
}

#[test]
fn what_wkg_pushed_is_pulled_and_serves() {
    let (place, registry) = (Place::new(), theirs());
    let reference = registry.reference();
    place.ok(&["pull", &reference, "-o", "pulled.wasm"]);
    assert_eq!(std::fs::read(place.path("pulled.wasm")).unwrap(), bytes("nofilter.wasm"));
    let pinned = format!("{reference}@{}", digest(&bytes("wkg-manifest.json")));
    let server = place.launch(&["--wasm-filter", &pinned, "memory", "1M"]).start();
    assert!(server.client().read(0, 4096).is_ok());
    says_only_the_name(&server.stop().stderr);
}

#[test]
fn what_sigstore_signed_is_accepted_with_its_key_only() {
    let (place, registry) = (Place::new(), theirs());
    let reference = registry.reference();
    let key = text_path("sigstore.pub");
    let pulled: Value =
        serde_json::from_str(&place.ok(&["pull", "--json", "--filter-key", &key, "-o", "x.wasm", &reference])).unwrap();
    assert_eq!(pulled["signer"]["key"], json!(key));
    let pinned = format!("{reference}@{}", digest(&bytes("wkg-manifest.json")));
    let server = place.launch(&["--filter-key", &key, "--wasm-filter", &pinned, "memory", "1M"]).start();
    assert!(server.client().read(0, 4096).is_ok());
    says_only_the_name(&server.stop().stderr);
    place.forget();
    let refused = place.refused(&["pull", "--filter-key", &text_path("ours.pub"), "-o", "y.wasm", &reference]);
    assert!(refused.contains("none of its 1 signatures is of the key "), "{refused}");
}

/// Asks the registry as another client would.
fn get(registry: &Registry, path: &str) -> Vec<u8> {
    let url = format!("http://{}/v2/{path}", registry.host);
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let output = wait::output(Command::new("curl").args(["-sSf", "-H", accept, &url]));
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn what_is_pushed_is_still_what_wkg_and_sigstore_accepted() {
    let place = Place::new();
    let registry = Registry::start(&place);
    place.ok(&["keygen", "k"]);
    place.ok(&["push", "--sign", "k.key", &text_path("nofilter.wasm"), &registry.at("ours/nofilter:1")]);
    let manifest = get(&registry, "ours/nofilter/manifests/1");
    assert_eq!(String::from_utf8(manifest.clone()).unwrap(), String::from_utf8(bytes("ours-manifest.json")).unwrap());

    // The configuration says the same of the component as wkg's. Only wkg writes author and date.
    let asked = serde_json::from_slice::<Value>(&manifest).unwrap()["config"]["digest"].as_str().unwrap().to_owned();
    let config: Value = serde_json::from_slice(&get(&registry, &format!("ours/nofilter/blobs/{asked}"))).unwrap();
    let theirs = json_of("wkg-config.json");
    for key in ["architecture", "os", "layerDigests", "component"] {
        assert_eq!(config[key], theirs[key], "{key}");
    }

    // The signatures: another key and another port of the registry, and all else the same.
    let tag = digest(&manifest).replace(':', "-");
    let mut signatures: Value =
        serde_json::from_slice(&get(&registry, &format!("ours/nofilter/manifests/{tag}.sig"))).unwrap();
    let asked = signatures["layers"][0]["digest"].as_str().unwrap().to_owned();
    let payload = String::from_utf8(get(&registry, &format!("ours/nofilter/blobs/{asked}"))).unwrap();
    let accepted = String::from_utf8(bytes("ours-payload.json")).unwrap();
    let identity = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        value["critical"]["identity"]["docker-reference"].as_str().unwrap().to_owned()
    };
    assert_eq!(payload.replace(&identity(&payload), ""), accepted.replace(&identity(&accepted), ""));
    // Sigstore writes the fields of the text in the same order.
    let their_text = String::from_utf8(bytes("sigstore-payload.json")).unwrap();
    let their_text = their_text.replace(&identity(&their_text), "");
    let their_text = their_text.replace(&digest(&bytes("wkg-manifest.json")), &digest(&manifest));
    assert_eq!(their_text, accepted.replace(&identity(&accepted), ""));
    let mut expected = json_of("ours-signatures.json");
    for value in [&mut signatures, &mut expected] {
        value["config"]["digest"] = Value::Null;
        value["layers"][0]["digest"] = Value::Null;
        value["layers"][0]["size"] = Value::Null;
        let signature = value["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"].take();
        assert!(signature.as_str().is_some_and(|text| text.starts_with("ME")), "{signature}");
    }
    assert_eq!(signatures, expected);
}
