//! `rbdkit-componentize MODULE.wasm COMPONENT.wasm`
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(module), Some(component), None) = (args.next(), args.next(), args.next()) else {
        bail!("usage: rbdkit-componentize MODULE.wasm COMPONENT.wasm");
    };
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let encoded =
        rbdkit_componentize::componentize(&bytes).with_context(|| format!("cannot use {}", module.display()))?;
    // Written whole or not at all: a build that is interrupted must not leave half a component behind.
    let partial = component.with_extension("wasm.tmp");
    std::fs::write(&partial, encoded).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, &component).with_context(|| format!("cannot write {}", component.display()))
}
