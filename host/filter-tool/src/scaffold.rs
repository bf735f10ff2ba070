//! `new`: creates a directory from which `build` makes a component.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::error::{Error, Result};

/// The contract, so that a filter can be built without rbdkit's source.
pub const CONTRACT: &str = include_str!("../../../wit/filter.wit");

/// The language of a filter.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    C,
    Js,
}

/// Creates the directory.
pub fn new(name: &str, language: Language, dir: Option<PathBuf>) -> Result<()> {
    let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !well_formed {
        return Err(Error::Name(name.to_string()));
    }
    let dir = dir.unwrap_or_else(|| PathBuf::from(name));
    if dir.exists() {
        return Err(Error::Exists(dir));
    }
    let fill = |template: &str| template.replace("@NAME@", name);
    match language {
        Language::Rust => {
            let sdk = sdk()?;
            let manifest =
                fill(include_str!("../templates/rust.Cargo.toml")).replace("@SDK@", &sdk.display().to_string());
            write(&dir.join("Cargo.toml"), &manifest)?;
            write(&dir.join("src/lib.rs"), &fill(include_str!("../templates/rust.lib.rs")))?;
        }
        Language::C => {
            write(&dir.join("filter.c"), &fill(include_str!("../templates/filter.c")))?;
            write(&dir.join("wit/world.wit"), &world("c"))?;
            write(&dir.join("wit/deps/rbdkit-filter/filter.wit"), CONTRACT)?;
        }
        Language::Js => {
            write(&dir.join("filter.js"), &fill(include_str!("../templates/filter.js")))?;
            write(&dir.join("wit/world.wit"), &world("js"))?;
            write(&dir.join("wit/deps/rbdkit-filter/filter.wit"), CONTRACT)?;
        }
    }
    say!("{} is ready: edit it, then", dir.display());
    say!("  rbdkit-filter build {}", dir.display());
    say!("  rbdkit-filter check {}", dir.join(format!("{name}.wasm")).display());
    say!("  rbdkit --wasm-filter {} memory 64M --run 'nbdinfo \"$uri\"'", dir.join(format!("{name}.wasm")).display());
    Ok(())
}

/// The WIT world of the templates in C and JavaScript, which lists their exports.
fn world(package: &str) -> String {
    format!(
        "package rbdkit-{package}:mine;\n\n\
         // Export here what the filter changes. The host takes care of everything else.\n\
         world mine {{\n    include rbdkit:filter/host@0.1.0;\n    export rbdkit:filter/reads@0.1.0;\n    \
         export rbdkit:filter/writes@0.1.0;\n}}\n"
    )
}

/// The path of the SDK: beside an installed program, or in the source tree that this program was
/// built from.
fn sdk() -> Result<PathBuf> {
    let installed = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("share/rbdkit/guest-filters/sdk")));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-filters/sdk");
    [installed, Some(source)]
        .into_iter()
        .flatten()
        .find(|dir| dir.join("Cargo.toml").exists())
        .and_then(|dir| dir.canonicalize().ok())
        .ok_or(Error::NoSdk)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::file("cannot make", parent))?;
    }
    std::fs::write(path, text).map_err(Error::file("cannot write", path))
}
