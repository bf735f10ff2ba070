//! Makes the Rust code of the SDK's bindings from the contract, `wit/filter.wit`.
//!
//! The result is checked in, at `sdk/src/bindings/`, so that the crate of a filter compiles neither
//! the generator nor the parsers that it needs. There is one world for the imports and the required
//! export, and one for each optional export, so that a component exports only what its author
//! names.
#![forbid(unsafe_code)]

mod native;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_rust::{Opts, WithOption};

/// The interfaces that a filter may export, by their names in the contract.
pub const EXPORTS: [&str; 15] = [
    "threading",
    "lifecycle",
    "admission",
    "names",
    "connection",
    "info",
    "features",
    "reads",
    "writes",
    "flushes",
    "trims",
    "zeroes",
    "mapping",
    "caching",
    "on-alarm",
];

/// The optional exports that use no type of the interface `types`.
pub const WITHOUT_TYPES: [&str; 5] = ["background", "wishes", "on-watch", "on-connection", "on-control"];

/// The command that writes the bindings again.
pub const COMMAND: &str = "cd guest-filters && cargo run --release -p rbdkit-filter-bindgen";

/// The directory of the contract.
pub fn contract() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit")
}

/// The directory of the bindings.
pub fn bindings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/src/bindings")
}

/// The files of the bindings: their names in [`bindings`], and what they contain.
///
/// # Errors
/// The contract cannot be read, or has no world or interface of a name that the bindings need.
pub fn generate(contract: &Path) -> Result<Vec<(String, String)>> {
    let mut made = vec![file("host", native::call_testing(&world(contract, "host", None)?)?)];
    for export in EXPORTS {
        made.push(file(export, world(contract, export, Some("super::host::rbdkit::filter::types"))?));
    }
    for export in WITHOUT_TYPES {
        made.push(file(export, world(contract, export, None)?));
    }
    Ok(made)
}

/// The file of one world. It says how to renew it.
fn file(name: &str, code: String) -> (String, String) {
    let head = format!("// @generated from wit/filter.wit: do not edit it. To write it again:\n// {COMMAND}\n");
    (format!("{name}.inc"), head + &code)
}

/// The code for the world `host`, or for a world that exports one interface. `types` is the path of
/// the module that has the interface `types` already.
fn world(contract: &Path, name: &str, types: Option<&str>) -> Result<String> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(contract).with_context(|| format!("cannot use {}", contract.display()))?;
    let world = match name {
        "host" => resolve.select_world(&[package], Some(name))?,
        _ => {
            let text = format!("package rbdkit:sdk; world {name} {{ export rbdkit:filter/{name}@0.1.0; }}");
            let package = resolve.push_str(Path::new("sdk.wit"), &text)?;
            resolve.select_world(&[package], Some(name))?
        }
    };
    let mut generator = Opts {
        format: true,
        with: types
            .map(|path| ("rbdkit:filter/types@0.1.0".to_string(), WithOption::Path(path.to_string())))
            .into_iter()
            .collect(),
        // Tests compare values.
        additional_derive_attributes: vec!["PartialEq".into()],
        pub_export_macro: true,
        export_macro_name: Some(if name == "host" {
            "export_filter".into()
        } else {
            format!("export_{}", name.replace('-', "_"))
        }),
        default_bindings_module: Some(format!("rbdkit_filter_sdk::bindings::{}", name.replace('-', "_"))),
        ..Opts::default()
    }
    .build();
    let mut files = Files::default();
    wit_bindgen_core::WorldGenerator::generate(&mut generator, &mut resolve, world, &mut files)?;
    let (_, code) = files.iter().next().context("the generator made no file")?;
    Ok(String::from_utf8(code.to_vec())?)
}
