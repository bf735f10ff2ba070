//! Checks what `deny.toml` says of the dependencies as far as that works without cargo-deny:
//! licences, sources and crates that must not be used. `make test` also runs `cargo deny` where it
//! is installed, which alone knows the advisories.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use rbdkit_tests::server::root;
use rbdkit_tests::wait;
use serde_json::Value;

/// The packages in `Cargo.lock`, and by a package's id the packages that it is built with on this
/// machine. Optional dependencies that are not built are left out.
fn packages() -> (Vec<Value>, BTreeMap<String, Vec<String>>) {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let manifest = root().join("Cargo.toml");
    // Not --offline: a build here does not download the crates for other systems.
    let arguments = ["metadata", "--format-version=1", "--locked", "--manifest-path"];
    let output = wait::output(Command::new(cargo).args(arguments).arg(manifest));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names = |node: &Value| -> Vec<String> {
        let needed = node["dependencies"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let packages = metadata["packages"].as_array().expect("packages");
        let name = |id: &str| packages.iter().find(|package| package["id"] == id)?["name"].as_str().map(str::to_owned);
        needed.filter_map(name).collect()
    };
    let nodes = metadata["resolve"]["nodes"].as_array().expect("nodes");
    let uses = nodes.iter().map(|node| (node["id"].as_str().unwrap_or_default().to_owned(), names(node))).collect();
    (metadata["packages"].as_array().expect("packages").clone(), uses)
}

/// The quoted words of a list in `deny.toml`. In a list of tables, the crates' names.
fn quoted(section: &str, key: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let section =
        text.split(&format!("[{section}]")).nth(1).expect("the section").split("\n[").next().expect("its text");
    let list = section.split(&format!("\n{key} = [")).nth(1).expect("the list").split("\n]").next().expect("its end");
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines
        .filter_map(|line| {
            let from = if line.contains("crate = ") { line.split("crate = ").nth(1)? } else { line };
            from.split('"').nth(1).map(str::to_owned)
        })
        .collect()
}

/// The crates that may use a crate which is forbidden to others.
fn wrappers() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let lists = text.lines().filter_map(|line| line.split("wrappers = [").nth(1)?.split(']').next());
    lists.flat_map(|list| list.split(',').map(|word| word.trim().trim_matches('"').to_owned())).collect()
}

/// Whether an SPDX expression can be satisfied with these licences. AND binds tighter than OR. `/`
/// is an old way to write OR.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut rest = &words[..];
    let result = either(&mut rest, licences);
    result && rest.is_empty()
}

fn either(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut result = both(words, licences);
    while let Some(("OR", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        result |= both(words, licences);
    }
    result
}

fn both(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut result = one(words, licences);
    while let Some(("AND", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        result &= one(words, licences);
    }
    result
}

fn one(words: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let Some((word, rest)) = words.split_first() else { return false };
    *words = rest;
    if *word == "(" {
        let result = either(words, licences);
        *words = words.get(1..).unwrap_or(&[]);
        return result;
    }
    match words {
        ["WITH", exception, rest @ ..] => {
            let whole = format!("{word} WITH {exception}");
            *words = rest;
            licences.contains(&whole) || licences.contains(*word)
        }
        _ => licences.contains(*word),
    }
}

#[test]
fn licence_expressions_are_evaluated_with_the_right_precedence() {
    let licences: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, right) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("Apache-2.0", false),
        ("", false),
    ] {
        assert_eq!(allowed(expression, &licences), right, "{expression}");
    }
}

#[test]
fn dependencies_are_what_deny_toml_allows() {
    let (licences, forbidden) = (quoted("licenses", "allow"), quoted("bans", "deny"));
    assert!(licences.contains("MIT") && forbidden.contains("openssl-sys"), "{licences:?} {forbidden:?}");
    let wrappers = wrappers();
    let (packages, uses) = packages();
    assert!(uses.values().flatten().any(|name| forbidden.contains(name)), "the one exception is not seen");
    let mut wrong = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let licence = package["license"].as_str().unwrap_or_default();
        if !allowed(licence, &licences) {
            wrong.push(format!("{name}: its licence is '{licence}'"));
        }
        for needed in uses.get(package["id"].as_str().unwrap_or_default()).into_iter().flatten() {
            if forbidden.contains(needed) && !wrappers.contains(&name) {
                wrong.push(format!("{name}: it uses {needed}"));
            }
        }
        // Packages of this workspace have no source.
        let source = package["source"].as_str();
        if source.is_some_and(|source| source != "registry+https://github.com/rust-lang/crates.io-index") {
            wrong.push(format!("{name}: it comes from {source:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The packages that programs are linked from, each with its features. Procedural macros are left
/// out: they are built for the compiler, with features of their own.
fn features(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let fixed = ["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p} [{f}]", "--no-dedupe"];
    let output = Command::new(cargo).current_dir(root()).args(fixed).args(arguments).output().expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let foreign = text.lines().filter(|line| !line.is_empty() && !line.starts_with("rbdkit"));
    foreign.map(str::to_owned).collect()
}

/// Otherwise a build of one program compiles wasmtime again, after a build of the workspace or of
/// the tests.
#[test]
fn a_program_and_the_whole_workspace_are_built_from_the_same_crates() {
    let all = features(&["--workspace", "--edges", "normal,dev,no-proc-macro"]);
    assert!(all.iter().any(|line| line.starts_with("wasmtime v")), "{all:?}");
    for program in ["rbdkit", "rbdkit-filter"] {
        let own = features(&["--package", program, "--edges", "normal,no-proc-macro"]);
        let others: Vec<&String> = own.difference(&all).collect();
        assert!(others.is_empty(), "{program} has other features of {others:?}: add them in host/sandbox/Cargo.toml");
    }
}
