//! Habits as tests: who may name whom, where unsafe code may be, and what every file begins with.

use std::path::{Path, PathBuf};

use rbdkit_tests::server::{is_nbdkit, program, root};
use rbdkit_tests::tool;
use rbdkit_tests::tree::{crates, files, read, relative};

/// The lines of code that mention `word`, without comments.
fn mentions(file: &Path, word: &str) -> Vec<String> {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let here = |line: &str| {
        line.match_indices(word)
            .any(|(at, _)| boundary(line[..at].chars().next_back()) && boundary(line[at + word.len()..].chars().next()))
    };
    let text = read(file);
    text.lines().filter(code).filter(|line| here(line)).map(|line| format!("{}: {line}", relative(file))).collect()
}

/// What the places inside a crate must not name, as in ARCHITECTURE.md. Between crates, the
/// manifests decide (`rooms.rs`).
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("host/src/cli", &["rbdkit_chain", "rbdkit_nbd", "rbdkit_sandbox", "rbdkit_server", "tokio"]),
    ("host/sandbox/src/state", &["wasmtime"]),
    ("tests/bench", &["rbdkit_nbd", "rbdkit_sandbox", "rbdkit_plugin_api"]),
];

#[test]
fn modules_name_only_what_the_architecture_allows() {
    let mut wrong = Vec::new();
    for (place, forbidden) in FORBIDDEN {
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

/// The Rust files of the whole tree.
fn sources() -> Vec<PathBuf> {
    ["host", "packaging", "plugins", "guest-filters", "tests"]
        .iter()
        .flat_map(|place| files(&root().join(place), ".rs"))
        .collect()
}

#[test]
fn every_crate_takes_the_lints_of_its_workspace_which_deny_unsafe_code() {
    let mut wrong = Vec::new();
    for place in crates() {
        if !has_setting(&read(&root().join(&place).join("Cargo.toml")), "[lints]", "workspace = true") {
            wrong.push(format!("{place}/Cargo.toml: no [lints] with workspace = true"));
        }
    }
    for workspace in ["Cargo.toml", "guest-filters/Cargo.toml"] {
        if !has_setting(&read(&root().join(workspace)), "[workspace.lints.rust]", "unsafe_code = \"deny\"") {
            wrong.push(format!("{workspace}: [workspace.lints.rust] does not deny unsafe_code"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a manifest has this line in this table.
fn has_setting(manifest: &str, table: &str, setting: &str) -> bool {
    let lines = manifest.lines().skip_while(|line| *line != table).skip(1);
    lines.take_while(|line| !line.starts_with('[')).any(|line| line == setting)
}

#[test]
fn unsafe_code_is_allowed_only_with_a_reason() {
    let mut wrong = Vec::new();
    for file in sources() {
        let nothing_said = allowed_without_reason(&read(&file));
        wrong.extend(
            nothing_said.iter().map(|line| format!("{}:{line}: unsafe code without a reason", relative(&file))),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The lines where a lint attribute allows unsafe code and has no `reason = "..."`.
fn allowed_without_reason(text: &str) -> Vec<usize> {
    let code: String = text.lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or_default())).collect();
    let mut found = Vec::new();
    for word in ["allow(", "expect("] {
        for (at, _) in code.match_indices(word).filter(|(at, _)| code[..*at].trim_end().ends_with('[')) {
            // To the end of the attribute: a reason may have parentheses of its own.
            let attribute = code[at..].split(")]").next().unwrap_or_default();
            if attribute.contains("unsafe_code") && !attribute.contains("reason = \"") {
                found.push(code[..at].lines().count());
            }
        }
    }
    found
}

#[test]
fn an_allowance_without_a_reason_is_found() {
    // `LINT`, so that this text is not found itself.
    let text = "#![allow(LINT)]\n#[allow(LINT, missing_docs)]\n// #[allow(LINT)]\n\
        #[allow(\n    LINT,\n    reason = \"the kernel (Linux) wants it\"\n)]\n#[expect(LINT)]\nfn f() {}";
    let text = text.replace("LINT", "unsafe_code");
    assert_eq!(allowed_without_reason(&text), [1, 2, 8]);
}

#[test]
fn every_use_of_unsafe_code_says_why_it_is_sound() {
    for file in sources() {
        let text = read(&file);
        let lines: Vec<&str> = text.lines().collect();
        for (nth, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word));
            if is_unsafe && !code.contains('"') {
                let said = lines[nth.saturating_sub(8)..=nth].iter().any(|line| line.contains("SAFETY"));
                assert!(said, "{}:{}: unsafe without SAFETY", relative(&file), nth + 1);
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is_first() {
    // The module around them says what they are.
    for file in sources().iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = read(file);
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(first.starts_with("//!"), "{} begins with {first:?}", relative(file));
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
            let program = program();
            let arguments = [format!("--filter={directory}"), "null".into(), "--help".into()];
            let text = tool(program.to_str().expect("a path in UTF-8"), arguments).ok();
            assert!(text.contains(&*directory), "{text}");
            assert!(
                root().join(format!("target/filters/{directory}.wasm")).exists(),
                "target/filters/{directory}.wasm"
            );
        }
    }
}
