//! Writes the SDK's bindings from the contract again. It takes no arguments.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use rbdkit_filter_bindgen::{bindings, contract, generate};

fn main() -> Result<()> {
    let directory = bindings();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in generate(&contract())? {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
