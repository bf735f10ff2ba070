//! Pushing, pulling and serving.

use std::process::Command;

use rbdkit_tests::server::filter;
use rbdkit_tests::wait;
use serde_json::Value;

use crate::{Place, Registry, component, labelled};

/// Asks the registry as another client would.
fn get(registry: &Registry, path: &str) -> Value {
    let url = format!("http://{}/v2/{path}", registry.host);
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let output = wait::output(Command::new("curl").args(["-sS", "-f", "-H", accept, &url]));
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn what_is_pushed_is_pulled_byte_by_byte_and_serves() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let reference = registry.at("team/nofilter:1.0");
    let pushed = place.ok(&["push", &component("nofilter"), &reference]);
    let digest = labelled(&pushed, "digest:");
    let pinned = format!("{reference}@{digest}");
    assert_eq!(labelled(&pushed, "use it:"), format!("rbdkit --wasm-filter {pinned} PLUGIN"));
    // The same component has the same digest whenever it is pushed.
    assert_eq!(labelled(&place.ok(&["push", &component("nofilter"), &reference]), "digest:"), digest);

    let bytes = std::fs::read(filter("nofilter")).unwrap();
    let pulled = place.ok(&["pull", &reference]);
    assert_eq!(labelled(&pulled, "digest:"), digest);
    assert_eq!(std::fs::read(place.path("nofilter.wasm")).unwrap(), bytes);
    let json: Value = serde_json::from_str(&place.ok(&["pull", "--json", "-o", "x.wasm", &pinned])).unwrap();
    assert_eq!((json["digest"].as_str(), json["size"].as_u64()), (Some(&*digest), Some(bytes.len() as u64)));
    assert_eq!((json["reference"].as_str(), json["signer"].is_null()), (Some(&*pinned), true));
    let inspected = place.ok(&["inspect", &reference]);
    assert_eq!(labelled(&inspected, "pin it with:"), format!("--wasm-filter {pinned}"));

    // Without a digest the server says which one to pin.
    let outcome = place.launch(&["--wasm-filter", &reference, "memory", "1M"]).start().stop();
    assert!(outcome.stderr.contains(&format!("pin it with --wasm-filter {pinned}\n")), "{}", outcome.stderr);
    // With it nobody is asked, and nothing is said.
    registry.stop();
    let server = place.launch(&["--wasm-filter", &pinned, "memory", "1M"]).start();
    assert!(server.client().read(0, 4096).is_ok());
    assert_eq!(server.stop().stderr, "");
    // The tag may be another component now: it is asked for.
    let refused = place.launch(&["--wasm-filter", &reference, "memory", "1M"]).try_start().err().expect("refused");
    let line = format!("cannot pull filter '{reference}': ");
    assert!(refused.stderr.contains(&line) && refused.stderr.contains("cannot be reached"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
}

#[test]
fn the_layout_is_that_of_the_webassembly_ecosystem() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let pushed = place.ok(&["push", "--json", &component("cow"), &registry.at("cow:1")]);
    let pushed: Value = serde_json::from_str(&pushed).unwrap();
    let manifest = get(&registry, "cow/manifests/1");
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!((layers.len(), layers[0]["mediaType"].as_str()), (1, Some("application/wasm")));
    assert_eq!(layers[0]["size"], pushed["size"]);
    assert_eq!(layers[0]["digest"], format!("sha256:{}", pushed["sha256"].as_str().unwrap()));
    assert_eq!(manifest["annotations"]["org.opencontainers.image.title"], "cow");
    let config = get(&registry, &format!("cow/blobs/{}", manifest["config"]["digest"].as_str().unwrap()));
    assert_eq!((config["architecture"].as_str(), config["os"].as_str()), (Some("wasm"), Some("wasip2")));
    assert_eq!(config["layerDigests"][0], layers[0]["digest"]);
    let names = |key: &str| config["component"][key].as_array().unwrap().clone();
    let begins = |names: &[Value], with: &str| names.iter().any(|name| name.as_str().unwrap().starts_with(with));
    assert!(begins(&names("imports"), "rbdkit:filter/"), "{config}");
    assert!(!names("exports").is_empty(), "{config}");
}

#[test]
fn what_the_server_would_not_load_is_not_pushed() {
    let place = Place::new();
    let registry = Registry::start(&place);
    place.file("text.wasm", b"no component");
    let to = registry.at("x:1");
    assert!(place.refused(&["push", "text.wasm", &to]).starts_with("text.wasm: "));
    assert!(place.refused(&["push", "gone.wasm", &to]).starts_with("cannot read gone.wasm: "));
    let digest = format!("@sha256:{}", "0".repeat(64));
    let refused = place.refused(&["push", &component("nofilter"), &format!("{to}{digest}")]);
    assert!(refused.ends_with("a component is pushed under a tag, without a digest"), "{refused}");
    let refused = place.refused(&["pull", &to]);
    assert_eq!(refused, format!("cannot pull {to}: {} has no x 1", registry.host));
}

#[test]
fn a_component_in_the_cache_that_was_altered_is_pulled_again() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let reference = registry.at("x:1");
    let digest = labelled(&place.ok(&["push", &component("nofilter"), &reference]), "digest:");
    let pinned = format!("{reference}@{digest}");
    place.ok(&["pull", &pinned]);
    let kept: Vec<_> = std::fs::read_dir(place.path("cache/rbdkit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "wasm" || end == "manifest"))
        .collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for path in &kept {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(path, &bytes).unwrap();
        place.ok(&["pull", &pinned]);
        assert_eq!(std::fs::read(place.path("x.wasm")).unwrap(), std::fs::read(filter("nofilter")).unwrap());
        bytes[10] ^= 1;
        assert_eq!(std::fs::read(path).unwrap(), bytes, "the right one is kept");
    }
}

#[test]
fn credentials_come_from_dockers_configuration_and_are_not_shown() {
    let place = Place::new();
    // The password is "geheim".
    let users = place.file("users", b"me:$2b$04$eqrM3ELhcqUbvUk1cdlb/Okx/C4x/3I9yswv0RtIuZ6L.iFGjcVim\n");
    let auth = format!("auth: {{htpasswd: {{realm: x, path: {}}}}}\n", users.display());
    let registry = Registry::with(&place, &auth);
    let (to, file) = (registry.at("x:1"), component("nofilter"));
    let push = ["push", file.as_str(), to.as_str()];
    let refused = place.refused(&push);
    assert!(refused.ends_with("docker's config.json has no credentials for it"), "{refused}");
    let configure = |auth: &str| {
        let config = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, registry.host);
        place.file("docker/config.json", config.as_bytes());
    };
    // me:falsch
    configure("bWU6ZmFsc2No");
    let refused = place.refused(&push);
    assert!(refused.ends_with("the credentials in docker's config.json do not suffice"), "{refused}");
    assert!(!refused.contains("falsch") && !refused.contains("bWU6"), "{refused}");
    // me:geheim
    configure("bWU6Z2VoZWlt");
    place.ok(&push);
    place.ok(&["pull", &to]);
    let server = place.launch(&["-v", "--wasm-filter", &to, "memory", "1M"]).start();
    let said = server.stop().stderr;
    assert!(!said.contains("geheim") && !said.contains("bWU6"), "{said}");
    place.file("docker/config.json", b"geheim");
    place.forget();
    let refused = place.refused(&["pull", &to]);
    assert!(refused.ends_with("config.json: is not JSON"), "{refused}");
    place.file("docker/config.json", br#"{"credsStore": "x"}"#);
    let refused = place.refused(&["pull", &to]);
    assert!(refused.ends_with("(a helper program has them, which is not started; put them into 'auths')"), "{refused}");
}

#[test]
fn another_machine_is_not_spoken_to_without_tls() {
    // 192.0.2.0/24 is for documentation. Nobody answers there, so this sees only what is tried.
    let place = Place::new();
    let refused = place.refused(&["pull", "--timeout", "1", "oci://192.0.2.1:5000/x:1"]);
    assert!(refused.starts_with("cannot pull oci://192.0.2.1:5000/x:1: 192.0.2.1:5000 "), "{refused}");
    for (reference, why) in [("x", "'x' does not begin with oci://"), ("oci://h/x", "has neither a tag nor a digest")] {
        assert!(place.refused(&["pull", reference]).contains(why));
    }
}
