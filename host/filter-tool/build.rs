//! Embeds what the program carries: the files of the SDK, which `new` copies into each project in
//! Rust, the filter `nofilter`, with which `bench` compares, and `auto`, with which `image` reads.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    embed_sdk();
    ["nofilter", "auto"].into_iter().try_for_each(embed_filter)
}

/// Embeds a filter from `$RBDKIT_FILTERS_DIR` or the workspace's `target/filters`. If it was not
/// built, the program works without it.
fn embed_filter(name: &str) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=RBDKIT_FILTERS_DIR");
    let directory = match env::var_os("RBDKIT_FILTERS_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../target/filters"),
    };
    // Cargo treats a missing file as changed, and would build the program again each time.
    fs::create_dir_all(&directory)?;
    println!("cargo::rerun-if-changed={}", directory.canonicalize()?.display());
    let filter = directory.canonicalize()?.join(format!("{name}.wasm"));
    let value = match filter.exists() {
        true => format!("Some(include_bytes!({:?}))", filter.display().to_string()),
        false => "None".to_string(),
    };
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join(format!("{name}.rs")), value)?;
    Ok(())
}

fn embed_sdk() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-filters");
    let sdk = guests.join("sdk");
    println!("cargo::rerun-if-changed={}", sdk.display());
    println!("cargo::rerun-if-changed={}", guests.join("Cargo.toml").display());
    let mut files = Vec::new();
    collect(&sdk, &sdk, &mut files);
    files.sort();
    let workspace = std::fs::read_to_string(guests.join("Cargo.toml")).expect("the guests' manifest");
    let mut list = String::from("&[\n");
    for (name, path) in files {
        let text = std::fs::read_to_string(&path).expect("a file of the SDK");
        let text = if name == "Cargo.toml" { alone(&text, &workspace) } else { text };
        let _ = writeln!(list, "({name:?}, {text:?}),");
    }
    list.push_str("]\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("sdk.rs");
    std::fs::write(out, list).expect("the list of the SDK's files");
}

/// The files that a project needs, with their paths in the SDK.
fn collect(root: &Path, dir: &Path, files: &mut Vec<(String, PathBuf)>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the SDK") {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(root).expect("below the SDK").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "tests" {
                collect(root, &path, files);
            }
        } else if name != "Cargo.lock" {
            files.push((name, path));
        }
    }
}

/// The SDK's manifest with what it inherits from the guests' workspace written out.
fn alone(manifest: &str, workspace: &str) -> String {
    let value = |section: &str, key: &str| {
        let lines = workspace.lines().skip_while(|line| *line != section).skip(1);
        let mut lines = lines.take_while(|line| !line.starts_with('['));
        let found = lines.find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('=').map(str::trim));
        found.unwrap_or_else(|| panic!("{section} of the guests' manifest has no {key}")).to_owned()
    };
    let mut text = String::new();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        if section == "[lints]" {
            continue;
        }
        match (line.strip_suffix(".workspace = true"), section) {
            (Some("publish"), _) => {}
            (Some(key), "[package]") => {
                let _ = writeln!(text, "{key} = {}", value("[workspace.package]", key));
            }
            (Some(key), _) => {
                let _ = writeln!(text, "{key} = {}", value("[workspace.dependencies]", key));
            }
            (None, _) => {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}
