//! The commands of the tool take a reference where they take a file.

use crate::{Place, Registry, component, labelled};

/// The commands, each with the words before and after the component.
const COMMANDS: [(&[&str], &[&str]); 5] = [
    (&["inspect"], &[]),
    (&["check"], &["--ops", "50", "--largest", "64k"]),
    (&["call"], &["pread", "0", "512"]),
    (&["bench"], &["--time", "100ms"]),
    (&["replay", "record"], &[]),
];

#[test]
fn check_call_bench_inspect_and_replay_take_a_reference_and_a_key() {
    let place = Place::new();
    let registry = Registry::start(&place);
    for name in ["ours", "theirs"] {
        place.ok(&["keygen", name]);
    }
    let reference = registry.at("offset:1");
    let digest = labelled(&place.ok(&["push", "--sign", "ours.key", &component("offset"), &reference]), "digest:");
    let pinned = format!("{reference}@{digest}");
    let record = format!("--record={}", place.path("record").display());
    let server = place.launch(&["--filter=offset", &record, "memory", "1M"]).start();
    assert!(server.client().read(0, 512).is_ok());
    server.stop();
    let run = |(before, after): (&[&str], &[&str]), filter: &str, key: &[&str]| {
        place.tool(&[before, &[filter], after, key].concat())
    };
    for command in COMMANDS {
        let name = command.0[0];
        for (filter, key) in [(&reference, &[][..]), (&pinned, &["--filter-key", "ours.pub"])] {
            let output = run(command, filter, key);
            assert!(output.status.success(), "{name} {filter}: {}", String::from_utf8_lossy(&output.stderr));
        }
        place.forget();
        let refused = run(command, &pinned, &["--filter-key", "theirs.pub"]);
        let line =
            format!("rbdkit-filter: error: cannot pull {pinned}: none of its 1 signatures is of the key theirs.pub\n");
        assert_eq!((refused.status.code(), String::from_utf8_lossy(&refused.stderr)), (Some(1), line.into()), "{name}");
        let file = component("offset");
        let refused = run(command, &file, &["--filter-key", "ours.pub"]);
        let line = format!(
            "rbdkit-filter: error: --filter-key: '{file}' is a file, and only filters in a registry have signatures\n"
        );
        assert_eq!((refused.status.code(), String::from_utf8_lossy(&refused.stderr)), (Some(1), line.into()), "{name}");
    }
    // A component that is pinned and was pulled needs no registry.
    place.ok(&["pull", "--filter-key", "ours.pub", &pinned]);
    registry.stop();
    for command in COMMANDS {
        let output = run(command, &pinned, &["--filter-key", "ours.pub"]);
        assert!(output.status.success(), "{}: {}", command.0[0], String::from_utf8_lossy(&output.stderr));
        let output = run(command, &reference, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("cannot be reached"), "{}: {said}", command.0[0]);
    }
}
