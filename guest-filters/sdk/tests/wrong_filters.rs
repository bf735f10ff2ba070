//! Filters that must not compile, on the developer's own machine, and what the compiler says.
//!
//! Each is a project of its own, as an author has it. `cargo check` compiles the SDK once for all.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The start of every filter.
const HEAD: &str = "
use rbdkit_filter_sdk::prelude::*;

params! {
    pub struct Settings {
        /// The key.
        key: u8 = 255,
    }
}

pub struct Mine;

impl Filter for Mine {
    type Params = Settings;

    fn describe() -> Description {
        Description::new(\"mine\", \"1\", \"wrong\")
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let _ = settings.key;
        Ok(Mine)
    }
}

impl Reads for Mine {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)
    }
}
";

/// Each trait: its name, its interface, the operations that the message must name, and the methods
/// of an implementation.
const TRAITS: [(&str, &str, &str, &str); 19] = [
    ("Threading", "threading", "thread_model", "fn thread_model(&self) -> ThreadModel { ThreadModel::Parallel }"),
    ("Lifecycle", "lifecycle", "get_ready, after_fork and cleanup", ""),
    ("Admission", "admission", "preconnect", "fn preconnect(&self, _: bool) -> Result<(), Errno> { Ok(()) }"),
    ("Names", "names", "list_exports and default_export", ""),
    ("Connection", "connection", "open, prepare, finalize and close", ""),
    ("Info", "info", "get_size, block_size and export_description", ""),
    ("Features", "features", "can", "fn can(&self, can: Capabilities) -> Result<Capabilities, Errno> { Ok(can) }"),
    ("Reads", "reads", "pread", ""),
    ("Writes", "writes", "pwrite", "fn pwrite(&self, _: u64, _: u32, _: CommandFlags) -> Result<(), Errno> { Ok(()) }"),
    ("Flushes", "flushes", "flush", "fn flush(&self) -> Result<(), Errno> { Ok(()) }"),
    ("Trims", "trims", "trim", "fn trim(&self, _: u64, _: u64, _: CommandFlags) -> Result<(), Errno> { Ok(()) }"),
    ("Zeroes", "zeroes", "zero", "fn zero(&self, _: u64, _: u64, _: CommandFlags) -> Result<(), Errno> { Ok(()) }"),
    (
        "Mapping",
        "mapping",
        "extents",
        "fn extents(&self, _: u64, _: u64, _: CommandFlags) -> Result<Vec<Extent>, Errno> { Ok(vec![]) }",
    ),
    ("Caching", "caching", "cache", "fn cache(&self, _: u64, _: u64) -> Result<(), Errno> { Ok(()) }"),
    ("Background", "background", "next_range", "fn next_range(&self) -> Option<(u64, u64)> { None }"),
    ("OnAlarm", "on_alarm", "alarm", "fn alarm(&self, _: Scope, _: u32) {}"),
    ("OnWatch", "on_watch", "changed", "fn changed(&self, _: &str, _: u32, _: bool) {}"),
    ("OnControl", "on_control", "received", "fn received(&self, _: &str, _: u32, _: &[u8]) -> Vec<u8> { Vec::new() }"),
    ("OnConnection", "on_connection", "opened and closed", "fn opened(&self, _: u64) {} fn closed(&self, _: u64) {}"),
];

/// Implements every trait that [`HEAD`] does not.
fn all_traits() -> String {
    let others = TRAITS.iter().filter(|(name, ..)| *name != "Reads");
    others.map(|(name, _, _, body)| format!("impl {name} for Mine {{ {body} }}\n")).collect()
}

/// Makes a project and checks it. Returns what cargo says, or None if it compiles.
fn check(name: &str, source: &str) -> Option<String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong-filters");
    let project = place.join(name);
    std::fs::create_dir_all(project.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nrbdkit-filter-sdk = {{ path = \"{}\" }}\n[workspace]\n",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(project.join("src/lib.rs"), format!("{HEAD}\n{source}\n")).unwrap();
    // The versions that are downloaded already.
    let lock = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    std::fs::copy(lock, project.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--color=never"])
        .current_dir(&project)
        .env("CARGO_TARGET_DIR", place.join("target"))
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(said)
}

/// What the compiler says about a wrong filter.
fn refused(name: &str, source: &str) -> String {
    check(name, source).unwrap_or_else(|| panic!("{name} compiles:\n{source}"))
}

#[test]
fn a_filter_that_names_what_it_implements_compiles() {
    let names: Vec<&str> = TRAITS.iter().map(|(_, interface, ..)| *interface).collect();
    let source = format!("{}rbdkit_filter_sdk::export!(Mine: {});", all_traits(), names.join(", "));
    assert_eq!(check("right", &source), None);
}

#[test]
fn a_trait_that_is_implemented_and_not_named_names_the_operation_and_what_would_happen() {
    let said = refused("unnamed", &format!("{}rbdkit_filter_sdk::export!(Mine);", all_traits()));
    for (name, interface, operations, _) in TRAITS {
        let message = format!(
            "`Mine` implements `{name}`, and export! does not name `{interface}`: {operations} would never be called"
        );
        assert!(said.contains(&message), "{message}\n{said}");
    }
}

#[test]
fn an_opaque_filter_that_forgets_writes_learns_that_the_disk_would_be_read_only() {
    let writes = TRAITS.iter().find(|(name, ..)| *name == "Writes").unwrap().3;
    let said =
        refused("read-only", &format!("impl Writes for Mine {{ {writes} }}\nrbdkit_filter_sdk::export!(Mine: reads);"));
    assert!(said.contains("an opaque one would make the disk read-only"), "{said}");
    assert_eq!(said.matches("export! does not name").count(), 1, "{said}");
}

#[test]
fn an_interface_that_is_named_and_not_implemented_is_refused() {
    let said = refused("unimplemented", "rbdkit_filter_sdk::export!(Mine: reads, writes);");
    assert!(said.contains("`Mine` is exported with `writes` and does not implement the trait `Writes`"), "{said}");
    assert!(said.contains("implement `Writes`, or remove `writes` from export!"), "{said}");
}

#[test]
fn a_misspelt_interface_is_refused_with_the_right_names() {
    let said = refused("misspelt", "rbdkit_filter_sdk::export!(Mine: raeds);");
    assert!(said.contains("the contract has no interface `raeds`: export! takes wishes, threading"), "{said}");
}

#[test]
fn a_misspelt_parameter_does_not_compile() {
    let said =
        refused("parameter", "pub fn key(s: Settings) -> u8 { s.kye }\nrbdkit_filter_sdk::export!(Mine: reads);");
    assert!(said.contains("no field `kye` on type `Settings`"), "{said}");
}

#[test]
fn a_default_that_the_type_cannot_hold_does_not_compile() {
    let said =
        refused("default", "params! { pub struct S { key: u8 = 256, } }\nrbdkit_filter_sdk::export!(Mine: reads);");
    assert!(said.contains("literal out of range for `u8`"), "{said}");
}

#[test]
fn a_type_that_is_no_value_is_refused_with_those_that_are() {
    let said =
        refused("no-value", "params! { pub struct S { key: i32 = 1, } }\nrbdkit_filter_sdk::export!(Mine: reads);");
    assert!(said.contains("`i32` cannot be the value of a parameter"), "{said}");
    assert!(said.contains("a value is a `String`, `bool`, `u8`") && said.contains("params! { pub struct S { key: i32"));
}

#[test]
fn an_option_with_a_default_is_refused() {
    let said = refused("option", "params! { pub struct S { key: Option<u8> = None, } }");
    assert!(said.contains("a field may also be an `Option` or a `Vec` of them, and then it has no default"), "{said}");
}
