//! The source tree, as the tests of its structure and its texts see it.

use std::path::{Path, PathBuf};

use crate::server::root;

/// The text of a file.
///
/// # Panics
/// If it cannot be read.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a directory whose names end with `ending`, sorted. Build outputs are left out.
///
/// # Panics
/// If the directory cannot be read.
pub fn files(below: &Path, ending: &str) -> Vec<PathBuf> {
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

/// The directories of all crates, relative to the root of the tree and sorted: `host`, `host/nbd`,
/// ... The templates of `rbdkit-filter new` are the text of crates that an author makes of them.
pub fn crates() -> Vec<String> {
    let manifests = files(&root(), "Cargo.toml");
    let is_crate = |manifest: &&PathBuf| read(manifest).lines().any(|line| line == "[package]");
    let places = manifests.iter().filter(is_crate).map(|manifest| relative(manifest.parent().unwrap_or(manifest)));
    places.filter(|place| !place.contains("templates")).collect()
}

/// The crates that are the product: neither tests nor tools for tests.
pub fn product_crates() -> Vec<String> {
    crates().into_iter().filter(|place| place != "tests" && !place.starts_with("tests/")).collect()
}

/// A path below the root of the tree, written from there.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}
