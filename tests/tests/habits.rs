//! Habits as tests: who may know whom, and that the documents say what is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rbdkit_tests::server::{is_nbdkit, program, root};
use rbdkit_tests::tool;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a directory whose names end so, build outputs left out.
fn files(below: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(below).unwrap_or_else(|error| panic!("{}: {error}", below.display()));
    for entry in entries.map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() && !["target", "node_modules", ".git"].contains(&name.as_str()) {
            found.extend(files(&entry, ending));
        } else if name.ends_with(ending) {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// The lines of code that mention `word`, comments left out.
fn mentions(file: &Path, word: &str) -> Vec<String> {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let here = |line: &str| {
        line.match_indices(word)
            .any(|(at, _)| boundary(line[..at].chars().next_back()) && boundary(line[at + word.len()..].chars().next()))
    };
    let text = read(file);
    text.lines().filter(code).filter(|line| here(line)).map(|line| format!("{}: {line}", file.display())).collect()
}

/// What must not be imported where, as in ARCHITECTURE.md's table.
const EDGES: &[(&str, &[&str])] = &[
    ("host/src/cli", &["crate::nbd", "crate::server", "crate::wasm", "wasmtime", "tokio"]),
    ("host/src/nbd", &["tokio", "crate::chain", "crate::wasm", "crate::server", "wasmtime"]),
    ("host/src/server", &["wasmtime", "crate::wasm", "crate::registry"]),
    ("host/src/chain", &["crate::nbd", "crate::wasm", "crate::server", "wasmtime"]),
    ("host/src/wasm", &["crate::nbd", "crate::server", "crate::registry"]),
    ("host/src/wasm/state", &["wasmtime"]),
    ("host/src/startup", &["wasmtime"]),
    ("plugins", &["wasmtime", "rbdkit::"]),
    ("guest-filters", &["rbdkit_plugin_api", "wasmtime"]),
];

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let mut wrong = Vec::new();
    for (place, forbidden) in EDGES {
        for file in files(&root().join(place), ".rs") {
            forbidden.iter().for_each(|word| wrong.extend(mentions(&file, word)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_registry_names_the_built_in_plugins() {
    let plugins: Vec<String> = std::fs::read_dir(root().join("plugins"))
        .expect("plugins")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().replace('-', "_"))
        .filter(|name| name != "api")
        .collect();
    let mut wrong = Vec::new();
    for file in files(&root().join("host/src"), ".rs") {
        if !file.ends_with("registry.rs") {
            plugins.iter().for_each(|name| wrong.extend(mentions(&file, &format!("rbdkit_plugin_{name}"))));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The dependencies in a manifest that are ours.
fn ours(manifest: &Path) -> Vec<String> {
    let text = read(manifest);
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && line.starts_with("rbdkit") {
            found.push(line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned());
        }
    }
    found
}

#[test]
fn a_plugin_depends_on_the_plugin_interface_and_never_on_a_sibling() {
    for manifest in files(&root().join("plugins"), "Cargo.toml") {
        for name in ours(&manifest) {
            // The slow server is for tests alone.
            let shared = [
                "rbdkit-plugin-api",
                "rbdkit-launcher",
                "rbdkit-script-protocol",
                "rbdkit-stream",
                "rbdkit-slow-server",
            ];
            assert!(shared.contains(&name.as_str()), "{} depends on {name}", manifest.display());
        }
    }
}

#[test]
fn guests_depend_on_guests_alone() {
    for manifest in files(&root().join("guest-filters"), "Cargo.toml") {
        let text = read(&manifest);
        for forbidden in ["../../host", "../../plugins", "../host", "../plugins"] {
            assert!(!text.contains(forbidden), "{} depends on {forbidden}", manifest.display());
        }
    }
}

#[test]
fn every_crate_forbids_unsafe_code_or_says_why_it_is_sound() {
    for place in ["host", "plugins", "guest-filters", "tests"] {
        for file in files(&root().join(place), ".rs") {
            let text = read(&file);
            let lines: Vec<&str> = text.lines().collect();
            for (nth, line) in lines.iter().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word));
                if is_unsafe && !code.contains('"') {
                    let said = lines[nth.saturating_sub(8)..=nth].iter().any(|line| line.contains("SAFETY"));
                    assert!(said, "{}:{}: unsafe without SAFETY", file.display(), nth + 1);
                }
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is_first() {
    for place in ["host", "plugins", "guest-filters", "tests"] {
        for file in files(&root().join(place), ".rs") {
            // Said where it is declared: the tests of the module around it.
            if file.ends_with("tests.rs") {
                continue;
            }
            let text = read(&file);
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            assert!(first.starts_with("//!"), "{} begins with {first:?}", file.display());
        }
    }
}

#[test]
fn places_in_the_map_exist() {
    let text = read(&root().join("ARCHITECTURE.md"));
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let place = line.split('`').nth(1).unwrap_or_default();
        if !place.contains("NAME") {
            assert!(root().join(place).exists(), "ARCHITECTURE.md names {place}");
        }
    }
}

/// The documents for users and developers.
fn documents() -> Vec<PathBuf> {
    files(&root(), ".md").into_iter().filter(|path| !path.ends_with("CHANGELOG.md")).collect()
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") {
                let target = document.parent().unwrap_or(Path::new(".")).join(path);
                assert!(target.exists(), "{} links to {link}", document.display());
            }
        }
    }
}

#[test]
fn targets_of_make_in_the_documents_exist() {
    let makefile = read(&root().join("Makefile"));
    for document in documents() {
        let text = read(&document);
        let code = text.split('`').skip(1).step_by(2).chain(text.lines().filter(|line| line.starts_with("    ")));
        for command in code.filter_map(|code| code.trim().strip_prefix("make ")) {
            let target = command.split_whitespace().next().unwrap_or_default();
            if target.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
                let rule = format!("{target}:");
                let there = makefile.lines().any(|line| line.starts_with(&rule));
                assert!(there, "{} says 'make {target}'", document.display());
            }
        }
    }
}

fn help(arguments: &[&str]) -> String {
    let program = program();
    tool(program.to_str().expect("a path in UTF-8"), arguments.iter().chain(&["--help"])).ok()
}

/// The words of a text that begin with two dashes.
fn options(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(|c| !word(c))
        .filter(|text| text.len() > 3 && text.starts_with("--") && !text.starts_with("---"))
        .map(|text| text.trim_end_matches('-').to_owned())
        .collect()
}

#[test]
fn options_in_the_readme_are_in_the_help() {
    if is_nbdkit() {
        return;
    }
    let known = options(&help(&[]));
    let text = read(&root().join("README.md"));
    for line in text.lines().filter(|line| line.contains("rbdkit ") && !line.contains("rbdkit-filter")) {
        for option in options(line) {
            assert!(known.contains(&option), "README.md says {option}, --help does not");
        }
    }
}

#[test]
fn every_plugin_and_filter_in_the_readme_has_help_and_a_page_with_its_parameters() {
    if is_nbdkit() {
        return;
    }
    let readme = read(&root().join("README.md"));
    let mut helps = Vec::new();
    for line in readme.lines().filter(|line| line.contains("README.md)") && line.starts_with('|')) {
        let name = line.split('|').nth(1).unwrap_or_default().trim();
        let page = line.split("](").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        let text = match page.starts_with("plugins/") {
            true => help(&[name]),
            false => help(&[&format!("--filter={name}"), "null"]),
        };
        assert!(text.contains(name), "the help of {name}:\n{text}");
        helps.push((name, page, text));
    }
    assert!(helps.len() >= 14, "only {} plugins and filters in README.md's tables", helps.len());
    // A page may speak of another's parameter.
    let all: String = helps.iter().map(|(_, _, text)| text.as_str()).collect();
    for (name, page, _) in &helps {
        // Lines of --dump-plugin look like parameters.
        let page: String = read(&root().join(page)).lines().filter(|line| !line.contains("--dump-plugin")).collect();
        for key in page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('=')).map(|(key, _)| key) {
            let is_key = key.starts_with(|c: char| c.is_ascii_lowercase())
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            assert!(!is_key || all.contains(key), "the page of {name} names {key}=, no --help does");
        }
    }
}

#[test]
fn the_filters_in_the_tree_are_those_in_the_binary() {
    if is_nbdkit() {
        return;
    }
    for manifest in files(&root().join("guest-filters"), "Cargo.toml") {
        if read(&manifest).contains("cdylib") {
            let directory = manifest.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let text = help(&[&format!("--filter={directory}"), "null"]);
            assert!(text.contains(&*directory), "{text}");
            assert!(
                root().join(format!("target/filters/{directory}.wasm")).exists(),
                "target/filters/{directory}.wasm"
            );
        }
    }
}
