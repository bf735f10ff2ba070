//! Signatures.

use std::path::Path;
use std::process::Command;

use rbdkit_tests::wait;
use serde_json::Value;

use crate::{Place, Registry, component, labelled};

#[test]
fn only_what_the_key_has_signed_is_pulled_and_served() {
    let place = Place::new();
    let registry = Registry::start(&place);
    for name in ["ours", "theirs"] {
        place.ok(&["keygen", name]);
    }
    let (signed, unsigned) = (registry.at("signed:1"), registry.at("unsigned:1"));
    let digest = labelled(&place.ok(&["push", "--sign", "ours.key", &component("nofilter"), &signed]), "digest:");
    place.ok(&["push", &component("offset"), &unsigned]);

    let pulled = place.ok(&["pull", "--filter-key", "ours.pub", &signed]);
    assert!(labelled(&pulled, "signed by:").ends_with(" (ours.pub)"), "{pulled}");
    place.forget();
    let refused = place.refused(&["pull", "--filter-key", "theirs.pub", &signed]);
    assert_eq!(refused, format!("cannot pull {signed}: none of its 1 signatures is of the key theirs.pub"));
    let refused = place.refused(&["pull", "--filter-key", "ours.pub", &unsigned]);
    assert!(refused.contains("it is not signed: there is no tag sha256-"), "{refused}");
    assert!(!place.path("unsigned.wasm").exists());

    // Another's signature stands beside ours, and each is there once.
    for key in ["theirs.key", "theirs.key", "ours.key"] {
        place.ok(&["push", "--sign", key, &component("nofilter"), &signed]);
    }
    for key in ["ours.pub", "theirs.pub"] {
        place.forget();
        place.ok(&["pull", "--filter-key", key, &signed]);
    }
    let tag = digest.replace(':', "-");
    let manifest: Value = {
        let url = format!("http://{}/v2/signed/manifests/{tag}.sig", registry.host);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        serde_json::from_slice(&wait::output(Command::new("curl").args(["-sSf", "-H", accept, &url])).stdout).unwrap()
    };
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2, "{manifest}");

    let key = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let pinned = format!("{signed}@{digest}");
    let refuse = |arguments: &[&str]| place.launch(arguments).try_start().err().expect("refused").stderr;
    let said = refuse(&["--filter-key", &key("ours.pub"), "--wasm-filter", &unsigned, "memory", "1M"]);
    assert!(said.contains(&format!("cannot pull filter '{unsigned}': it is not signed")), "{said}");
    let said = refuse(&["--filter-key", &key("ours.pub"), "--wasm-filter", &component("cow"), "memory", "1M"]);
    assert!(said.contains("is a file, and only filters in a registry have signatures"), "{said}");
    let said = refuse(&["--filter-key", &key("gone.pub"), "--wasm-filter", &signed, "memory", "1M"]);
    assert!(said.contains("--filter-key: ") && said.contains("gone.pub: No such file"), "{said}");
    let serves = ["--filter-key", &key("ours.pub"), "--filter=cow", "--wasm-filter", &pinned, "memory", "1M"];
    assert_eq!(place.launch(&serves).start().stop().stderr, "");
    // The signature is kept too.
    registry.stop();
    assert_eq!(place.launch(&serves).start().stop().stderr, "");
    let said = refuse(&["--filter-key", &key("theirs.pub"), "--wasm-filter", &pinned, "memory", "1M"]);
    assert!(said.contains("cannot be reached"), "a signature of another key needs the registry: {said}");
}

/// What cosign's own commands do step by step: `cosign generate`, a signature made elsewhere,
/// `cosign attach signature`.
#[test]
fn a_signature_that_another_program_made_is_accepted() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let pushed = place.ok(&["push", &component("nofilter"), &registry.at("x:1")]);
    let digest = labelled(&pushed, "digest:");
    let payload = serde_json::json!({
        "critical": {
            "identity": {"docker-reference": format!("{}/x", registry.host)},
            "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature",
        },
        "optional": {"who": "me"},
    })
    .to_string();
    place.file("payload", payload.as_bytes());
    let run = |program: &str, arguments: &[&str]| {
        let dir = place.path("");
        let output = wait::output(Command::new(program).args(arguments).current_dir(Path::new(&dir)));
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    run("openssl", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "k.key"]);
    run("openssl", &["pkey", "-in", "k.key", "-pubout", "-out", "k.pub"]);
    run("openssl", &["dgst", "-sha256", "-sign", "k.key", "-out", "sig", "payload"]);
    let signature = run("openssl", &["base64", "-A", "-in", "sig"]);
    let upload = |file: &str| {
        let hash = run("sha256sum", &[file]);
        let digest = format!("sha256:{}", hash.split(' ').next().unwrap());
        let begin = format!("http://{}/v2/x/blobs/uploads/", registry.host);
        let head = run("curl", &["-sSf", "-X", "POST", "-D", "-", "-o", "/dev/null", &begin]);
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("location:")).unwrap();
        let url = format!("{}&digest={digest}", line.split_once(':').unwrap().1.trim());
        let kind = "Content-Type: application/octet-stream";
        run("curl", &["-sSf", "-X", "PUT", "-H", kind, "--data-binary", &format!("@{file}"), &url]);
        digest
    };
    place.file("config", b"{}");
    let (config, layer) = (upload("config"), upload("payload"));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": layer, "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    });
    place.file("manifest", manifest.to_string().as_bytes());
    let url = format!("http://{}/v2/x/manifests/{}.sig", registry.host, digest.replace(':', "-"));
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    run("curl", &["-sSf", "-X", "PUT", "-H", kind, "--data-binary", "@manifest", &url]);
    place.ok(&["pull", "--filter-key", "k.pub", &registry.at("x:1")]);
}
