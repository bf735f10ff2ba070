//! The SDK can be packaged, without a network.

use std::path::Path;
use std::process::Command;

/// Runs `cargo package` with these arguments. Returns what it prints.
fn package(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["package", "--offline", "--allow-dirty"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("package"))
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_package_holds_the_source_the_bindings_and_the_licence_and_nothing_else() {
    let listed = package(&["--list"]);
    let files: Vec<&str> = listed.lines().collect();
    for file in ["Cargo.toml", "LICENSE", "README.md", "src/lib.rs", "src/bindings/host.inc", "src/testing/client.rs"] {
        assert!(files.contains(&file), "{file} is not in\n{listed}");
    }
    let made_by_cargo = ["Cargo.lock", "Cargo.toml", "Cargo.toml.orig", ".cargo_vcs_info.json"];
    let ours = |file: &&&str| file.starts_with("src/") || matches!(**file, "LICENSE" | "README.md");
    let others: Vec<_> = files.iter().filter(|file| !ours(file) && !made_by_cargo.contains(file)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn what_is_packaged_compiles_on_its_own() {
    package(&[]);
}
