//! Embeds the filters that were built before: every `NAME.wasm` in `$RBDKIT_FILTERS_DIR`, or else
//! in the workspace's `target/filters`, becomes `--filter=NAME`. If there are none, the program
//! works with `--wasm-filter` only.
//!
//! Exports nbdkit's functions from the program, for nbdkit's plugins.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// How a component begins: `\0asm`, version 13, layer 1.
const COMPONENT: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=RBDKIT_FILTERS_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    // nbdkit's plugins call functions of the program that loads them.
    println!("cargo::rustc-link-arg-bin=rbdkit=-Wl,--export-dynamic-symbol=nbdkit_*");
    let directory = match env::var_os("RBDKIT_FILTERS_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let directory = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../target/filters");
            // Cargo treats a missing directory as changed, and would build the program again each
            // time.
            fs::create_dir_all(&directory)?;
            directory.canonicalize()?
        }
    };
    println!("cargo::rerun-if-changed={}", directory.display());
    let filters = filters(&directory)?;
    if filters.is_empty() {
        println!("cargo::warning=no filters in {}: none is embedded (run make filters first)", directory.display());
    }
    let mut table = String::from("&[\n");
    for (name, path) in &filters {
        writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string())?;
    }
    table.push_str("]\n");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("filters.rs");
    fs::write(out, table)?;
    Ok(())
}

/// The components of a directory by name, in alphabetical order.
fn filters(directory: &Path) -> Result<Vec<(String, PathBuf)>, Box<dyn Error>> {
    let mut filters = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return Err(format!("{}: {error}", directory.display()).into()),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let (Some(name), true) = (name, path.extension().is_some_and(|extension| extension == "wasm")) else {
            continue;
        };
        if !fs::read(&path)?.starts_with(&COMPONENT) {
            return Err(format!("{} is not a component", path.display()).into());
        }
        filters.push((name.to_string(), path));
    }
    filters.sort();
    Ok(filters)
}
