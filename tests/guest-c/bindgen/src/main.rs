//! `rbdkit-test-c-bindings WIT_DIR WORLD_FILE OUT_DIR` writes the C bindings of the world in
//! `WORLD_FILE` and the object file with the world's type into `OUT_DIR`. The world may use the
//! packages in `WIT_DIR`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [wit, world_file, out] = &args[..] else {
        bail!("usage: rbdkit-test-c-bindings WIT_DIR WORLD_FILE OUT_DIR");
    };
    let mut resolve = Resolve::default();
    resolve.push_path(wit).with_context(|| format!("cannot use {}", wit.display()))?;
    let text = std::fs::read_to_string(world_file).with_context(|| format!("cannot read {}", world_file.display()))?;
    let package = resolve.push_str(world_file, &text)?;
    let world = resolve.select_world(&[package], None)?;
    let mut files = Files::default();
    let mut generator = wit_bindgen_c::Opts::default().build();
    generator.generate(&mut resolve, world, &mut files)?;
    std::fs::create_dir_all(out)?;
    for (name, contents) in files.iter() {
        std::fs::write(out.join(name), contents).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}
