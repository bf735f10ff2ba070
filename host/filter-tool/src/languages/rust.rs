//! Rust, with cargo and the SDK, of which each project has a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::definition::{CONTRACT, Definition, Keep, nothing, template, with_common};
use super::module;
use super::project::Project;
use super::run::{output, run};
use super::tools::{Tool, Way};
use crate::componentize::componentize;
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition { files, ways, prepare: nothing, build };

const TARGET: &str = "wasm32-unknown-unknown";

/// The files of the SDK, made by build.rs: the path in the SDK and the text.
const SDK: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

fn files() -> Vec<(String, String)> {
    let own = with_common(&[
        ("Cargo.toml", template!("rust/Cargo.toml")),
        ("src/lib.rs", template!("rust/lib.rs")),
        (".gitignore", template!("rust/gitignore")),
        ("wit/filter.wit", CONTRACT),
        ("test.sh", template!("rust/test.sh")),
    ]);
    let sdk = SDK.iter().map(|(path, text)| (format!("sdk/{path}"), (*text).to_owned()));
    own.into_iter().chain(sdk).collect()
}

/// Debian's compiler, whose standard library for the target is built from source.
const DEBIAN: &str = "/usr/bin/rustc";

/// Where Debian has that source.
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// The command that installs Rust.
const RUSTUP: &str = "see https://rustup.rs";

fn ways() -> Vec<Way> {
    let common = || {
        vec![
            Tool::program("cargo", "cargo", &["--version"], RUSTUP),
            Tool::program("rustc", "rustc", &["--version"], RUSTUP),
        ]
    };
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"])).map(PathBuf::from).unwrap_or_default();
    let rustlib = sysroot.join("lib/rustlib");
    let mut own = common();
    own.push(Tool::file(
        "Rust's standard library for WebAssembly",
        [rustlib.join(TARGET).join("lib")],
        "rustup target add wasm32-unknown-unknown",
    ));
    let mut debian = common();
    debian.extend([
        Tool::file("rustc-web", [PathBuf::from(DEBIAN)], "apt-get install rustc-web"),
        Tool::file("rust-web-src", [PathBuf::from(DEBIAN_LIBRARY)], "apt-get install rust-web-src"),
        Tool::file("rust-lld", [linker(&rustlib)], RUSTUP),
    ]);
    let command = vec!["cargo".into()];
    vec![Way { name: OWN, tools: own, command: command.clone() }, Way { name: "rustc-web", tools: debian, command }]
}

/// The name of the way with the toolchain's own standard library.
const OWN: &str = "the toolchain's standard library";

/// The linker of the toolchain in use.
fn linker(rustlib: &Path) -> PathBuf {
    let version = output(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("x86_64-unknown-linux-gnu");
    rustlib.join(host).join("bin/rust-lld")
}

/// Builds with cargo. The standard library for the target comes from the toolchain, or is built
/// from Debian's rust-web-src.
fn build(project: &Project, way: &Way, keep: Keep) -> Result<Vec<u8>> {
    let target_dir = project.made()?;
    let mut cargo = way.run();
    cargo
        .current_dir(&project.dir)
        .args(["build", "--release", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir);
    if keep == Keep::Debugging {
        cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only").env("CARGO_PROFILE_RELEASE_STRIP", "none");
    }
    if way.name != OWN {
        let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC", DEBIAN)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker(&sysroot.join("lib/rustlib")));
    }
    run(&mut cargo)?;
    let name = library(project)?;
    let module = target_dir.join(TARGET).join("release").join(format!("{name}.wasm"));
    let bytes = std::fs::read(&module).map_err(Error::file("cannot read", &module))?;
    componentize(&module::trimmed(bytes, keep))
}

/// The name of the library that cargo makes, as its metadata say.
fn library(project: &Project) -> Result<String> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&project.dir).args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut cargo)?).map_err(|_| Error::NoPackage)?;
    let manifest = project.path("Cargo.toml");
    let manifest = manifest.canonicalize().unwrap_or(manifest);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let own = packages.filter(|package| package["manifest_path"].as_str().map(Path::new) == Some(&manifest));
    let targets = own.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let mut libraries =
        targets.filter(|target| target["crate_types"].as_array().is_some_and(|types| types.contains(&"cdylib".into())));
    let name = libraries.next().and_then(|target| target["name"].as_str()).ok_or(Error::NoPackage)?;
    Ok(name.replace('-', "_"))
}
