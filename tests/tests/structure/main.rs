//! The structure of the source, as tests: no circle of files, one subject in a file, one type for a
//! name.
//!
//! The tests read the product's crates: everything under `host/`, `plugins/` and `guest-filters/`
//! that is compiled into the programs and filters. Tests, benches and models for tests are not
//! product code.

mod circles;
mod modules;
mod small_trees;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use modules::Crate;
use rbdkit_tests::server::root;
use rbdkit_tests::tree::{files, product_crates, read, relative};
use source::Which;

/// Most lines of a file of product code.
const MAX_LINES: usize = 500;

/// Files that may be longer, five at most. Each says at its head why it is one subject.
const LONGER: &[&str] = &[];

/// The roots of a package's crates: the library, the programs, the build script.
fn roots(package: &str) -> Vec<String> {
    let mut found = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned(), "build.rs".to_owned()];
    let programs = root().join(package).join("src/bin");
    if programs.exists() {
        found.extend(
            files(&programs, ".rs").iter().filter_map(|file| Some(format!("src/bin/{}", file.file_name()?.to_str()?))),
        );
    }
    let all = found.iter().map(|file| format!("{package}/{file}"));
    all.filter(|file| root().join(file).exists()).collect()
}

/// The crates of each package of the product.
fn packages(which: Which) -> BTreeMap<String, Vec<Crate>> {
    let text = |file: &str| {
        let path: PathBuf = root().join(file);
        path.is_file().then(|| read(&path))
    };
    let crates = |package: &str| {
        let all = roots(package);
        assert!(!all.is_empty(), "{package} has neither a library nor a program");
        all.iter().map(|root| Crate::read(root, which, &text).unwrap_or_else(|error| panic!("{error}"))).collect()
    };
    product_crates().into_iter().map(|package| (package.clone(), crates(&package))).collect()
}

/// The files of product code.
fn product_files() -> BTreeSet<String> {
    packages(Which::Product).values().flatten().flat_map(Crate::files).collect()
}

#[test]
fn no_circle_of_files_in_any_crate() {
    let mut wrong = Vec::new();
    for (package, crates) in packages(Which::Product) {
        for circles in crates.iter().map(|one| circles::circles(&one.imports())).filter(|circles| !circles.is_empty()) {
            wrong.push(format!("{package}: {} circles\n  {}", circles.len(), circles.join("\n  ")));
        }
    }
    assert!(wrong.is_empty(), "files import one another in a circle:\n{}", wrong.join("\n"));
}

/// The decoders of formats are independent of each other, and each has its header and its table.
/// They are one crate because the filters share them, so each decoder counts as a crate here.
const DECODERS: &str = "guest-filters/formats/src/";

/// A type's name, and for a decoder whose it is.
fn name_within(file: &str, name: String) -> String {
    let decoder = file.strip_prefix(DECODERS).map(|rest| rest.split(['/', '.']).next().unwrap_or_default());
    decoder.map_or(name.clone(), |decoder| format!("{decoder}::{name}"))
}

#[test]
fn no_two_types_of_a_crate_have_one_name() {
    let mut wrong = Vec::new();
    for (package, crates) in packages(Which::Product) {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, file) in crates.iter().flat_map(Crate::types) {
            places.entry(name_within(&file, name)).or_default().push(file);
        }
        for (name, places) in places.iter().filter(|(_, places)| places.len() > 1) {
            wrong.push(format!("{package}: {name} in {}", places.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "types that share a name:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_of_product_code_is_longer_than_500_lines() {
    assert!(LONGER.len() <= 5, "{} exceptions; five are allowed", LONGER.len());
    let files = product_files();
    let lines = |file: &str| read(&root().join(file)).lines().count();
    let mut wrong = Vec::new();
    for file in &files {
        if lines(file) > MAX_LINES && !LONGER.contains(&file.as_str()) {
            wrong.push(format!("{file}: {} lines", lines(file)));
        }
    }
    for file in LONGER {
        let is_needed = files.contains(*file) && lines(file) > MAX_LINES;
        if !is_needed {
            wrong.push(format!("{file}: an exception that is no longer needed"));
        } else if !head(&read(&root().join(file))).contains("one subject") {
            wrong.push(format!("{file}: its head does not say why it is one subject"));
        }
    }
    assert!(wrong.is_empty(), "longer than {MAX_LINES} lines:\n{}", wrong.join("\n"));
}

/// The documentation at the head of a file, on one line.
fn head(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    lines.map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>().join(" ")
}

/// If the reader missed a file, the other tests would not see what is wrong with it.
#[test]
fn every_source_file_is_reached_from_the_root_of_its_crate() {
    let reached: BTreeSet<String> =
        packages(Which::ProductAndTests).values().flatten().flat_map(Crate::files).collect();
    let sources = product_crates().into_iter().map(|package| root().join(package).join("src"));
    let all = sources.filter(|sources| sources.exists()).flat_map(|sources| files(&sources, ".rs"));
    let missed: Vec<String> = all.map(|file| relative(&file)).filter(|file| !reached.contains(file)).collect();
    assert!(missed.is_empty(), "not reached from the root of a crate:\n{}", missed.join("\n"));
}
