//! Embeds the filter `nofilter`, with which `bench` compares, from `$RBDKIT_FILTERS_DIR` or the
//! workspace's `target/filters`. If it was not built, `bench` works without the comparison.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=RBDKIT_FILTERS_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let directory = match env::var_os("RBDKIT_FILTERS_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../target/filters"),
    };
    // Cargo treats a missing file as changed, and would build the program again each time.
    fs::create_dir_all(&directory)?;
    println!("cargo::rerun-if-changed={}", directory.canonicalize()?.display());
    let filter = directory.canonicalize()?.join("nofilter.wasm");
    let value = match filter.exists() {
        true => format!("Some(include_bytes!({:?}))", filter.display().to_string()),
        false => "None".to_string(),
    };
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("nofilter.rs"), value)?;
    Ok(())
}
