//! The crates' dependencies are the table under "The rooms" in ARCHITECTURE.md, in both directions,
//! and only the sandbox depends on wasmtime.
//!
//! A row names one crate or several that see the same. `NAME` stands for all crates of a directory
//! that have no row of their own. The last column lists crates of this tree; behind "tests:" stand
//! those that only the crate's tests and benches use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use rbdkit_tests::server::root;
use rbdkit_tests::tree::{crates, read};
use rbdkit_tests::wait;
use serde_json::Value;

/// The only crate that may depend on wasmtime. Tests and benches of the others may use it.
const OWNER_OF_WASMTIME: &str = "host/sandbox";

/// What a crate depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sees {
    /// Crates of this tree, by directory.
    product: BTreeSet<String>,
    /// Crates of this tree that only tests and benches use.
    tests: BTreeSet<String>,
}

/// The packages of both workspaces, as Cargo reads their manifests.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let read = |manifest: &str| {
        let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"];
        let output = wait::output(Command::new(&cargo).args(arguments).arg(root().join(manifest)));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        metadata["packages"].as_array().expect("packages").clone()
    };
    ["Cargo.toml", "guest-filters/Cargo.toml"].into_iter().flat_map(read).collect()
}

/// A package's directory, from the root of the tree.
fn place(manifest: &Value) -> String {
    let manifest = manifest.as_str().expect("a path");
    let directory = Path::new(manifest).parent().expect("a directory");
    let root = root().canonicalize().expect("the root of the tree");
    directory.strip_prefix(root).expect("a crate of this tree").to_string_lossy().into_owned()
}

/// What each crate's manifest says.
fn manifests(packages: &[Value]) -> BTreeMap<String, Sees> {
    let sees = |package: &Value| {
        let mut sees = Sees::default();
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let Some(path) = dependency["path"].as_str() else { continue };
            let of = place(&Value::from(format!("{path}/Cargo.toml")));
            if dependency["kind"] == "dev" { &mut sees.tests } else { &mut sees.product }.insert(of);
        }
        sees.tests = &sees.tests - &sees.product;
        sees
    };
    packages.iter().map(|package| (place(&package["manifest_path"]), sees(package))).collect()
}

/// The words in backquotes, as crates.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(|word| word.trim_end_matches('/').to_owned()).collect()
}

/// The rows of the table: the crates of each and what they see.
fn rows(text: &str) -> Vec<(BTreeSet<String>, Sees)> {
    let section = text.split("\n## ").find(|section| section.starts_with("The rooms\n")).expect("## The rooms");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').collect();
        assert_eq!(cells.len(), 5, "a row of three cells: {line}");
        let (product, tests) = cells[3].split_once("tests:").unwrap_or((cells[3], ""));
        (quoted(cells[1]), Sees { product: quoted(product), tests: quoted(tests) })
    };
    section.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// What the table says of each of these crates, and what is wrong with the table itself.
fn table(text: &str, crates: &BTreeSet<String>) -> (BTreeMap<String, Sees>, Vec<String>) {
    let (mut found, mut wrong) = (BTreeMap::new(), Vec::new());
    let rows = rows(text);
    let named = rows.iter().flat_map(|(names, sees)| names.iter().map(move |name| (name, sees)));
    let (patterns, exact): (Vec<_>, Vec<_>) = named.partition(|(name, _)| name.ends_with("/NAME"));
    for (name, sees) in exact {
        if !crates.contains(name) {
            wrong.push(format!("{name}: the table has a row for it, but there is no such crate"));
        } else if found.insert(name.clone(), sees.clone()).is_some() {
            wrong.push(format!("{name}: two rows"));
        }
    }
    for (name, sees) in patterns {
        let is_in = |place: &&String| place.rsplit_once('/').is_some_and(|(above, _)| format!("{above}/NAME") == *name);
        for place in crates.iter().filter(is_in) {
            found.entry(place.clone()).or_insert_with(|| sees.clone());
        }
    }
    (found, wrong)
}

/// Where the table and the manifests differ.
fn differences(text: &str, manifests: &BTreeMap<String, Sees>) -> Vec<String> {
    let (table, mut wrong) = table(text, &manifests.keys().cloned().collect());
    for (place, manifest) in manifests {
        let Some(row) = table.get(place) else {
            wrong.push(format!("{place}: it has no row"));
            continue;
        };
        for (what, depends, listed) in
            [("depends", &manifest.product, &row.product), ("depends, for its tests,", &manifest.tests, &row.tests)]
        {
            wrong.extend(
                (depends - listed).iter().map(|of| format!("{place}: it {what} on {of}, its row does not say so")),
            );
            wrong.extend((listed - depends).iter().map(|of| format!("{place}: its row says that it {what} on {of}")));
        }
    }
    wrong
}

#[test]
fn the_dependencies_of_each_crate_are_its_row_in_the_architecture() {
    let manifests = manifests(&packages());
    let wrong = differences(&read(&root().join("ARCHITECTURE.md")), &manifests);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(manifests.into_keys().collect::<Vec<_>>(), crates(), "crates that are in neither workspace");
}

#[test]
fn a_difference_between_table_and_manifests_is_named_both_ways() {
    let text = "# A\n\n## The rooms\n\n| crate | what lives there | may see |\n|---|---|---|\n\
        | `host/` | the program | `host/a`, `host/c`; tests: `tests/slow` |\n\
        | `host/a/`, `host/b` | two | |\n| `guests/NAME/` | filters | `guests/sdk` |\n| `guests/sdk/` | | |\n\
        | `gone/` | nothing | |\n\n## Else\n\n| `host/d` | | `x` |\n";
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let sees = |product: &[&str], tests: &[&str]| Sees { product: set(product), tests: set(tests) };
    let manifests = [
        ("host", sees(&["host/a", "host/b"], &["tests/slow", "host/nbd"])),
        ("host/a", sees(&[], &[])),
        ("host/b", sees(&[], &[])),
        ("host/d", sees(&[], &[])),
        ("guests/sdk", sees(&[], &[])),
        ("guests/one", sees(&["guests/sdk"], &[])),
        ("guests/two", sees(&[], &[])),
    ];
    let manifests = manifests.into_iter().map(|(place, sees)| (place.to_owned(), sees)).collect();
    let wanted = [
        "gone: the table has a row for it, but there is no such crate",
        "guests/two: its row says that it depends on guests/sdk",
        "host: it depends on host/b, its row does not say so",
        "host: its row says that it depends on host/c",
        "host: it depends, for its tests, on host/nbd, its row does not say so",
        "host/d: it has no row",
    ];
    assert_eq!(differences(text, &manifests), wanted);
}

#[test]
fn a_plugin_never_depends_on_a_sibling_and_a_guest_only_on_guests() {
    let packages = packages();
    let is_plugin = |name: &str| name.starts_with("rbdkit-plugin-") && name != "rbdkit-plugin-api";
    let mut wrong = Vec::new();
    for package in &packages {
        let place = place(&package["manifest_path"]);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().unwrap_or_default();
            let is_guest = name.starts_with("rbdkit-filter-");
            let is_ours = name.starts_with("rbdkit");
            if place.starts_with("plugins/") && is_plugin(name)
                || place.starts_with("guest-filters/") && is_ours && !is_guest
            {
                wrong.push(format!("{place} depends on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let plugins = packages.iter().filter(|package| package["name"].as_str().is_some_and(is_plugin)).count();
    assert!(plugins >= 10, "only {plugins} plugins are seen");
}

#[test]
fn only_the_sandbox_depends_on_wasmtime() {
    let mut wrong = Vec::new();
    let mut owners = BTreeSet::new();
    for package in packages() {
        let place = place(&package["manifest_path"]);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().unwrap_or_default();
            if name.starts_with("wasmtime") && dependency["kind"] != "dev" {
                owners.insert(place.clone());
                if place != OWNER_OF_WASMTIME && place != "tests" {
                    wrong.push(format!("{place}: it depends on {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(owners.contains(OWNER_OF_WASMTIME), "the sandbox's own dependency is not seen");
}
