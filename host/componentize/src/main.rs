//! `rbdkit-componentize MODULE.wasm COMPONENT.wasm`
#![forbid(unsafe_code)]

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(module), Some(component), None) = (args.next(), args.next(), args.next()) else {
        bail!("usage: rbdkit-componentize MODULE.wasm COMPONENT.wasm");
    };
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let encoded =
        rbdkit_componentize::componentize(&bytes).with_context(|| format!("cannot use {}", module.display()))?;
    write_whole(&component, &encoded).with_context(|| format!("cannot write {}", component.display()))
}

/// Writes the whole file or nothing, because an interrupted build must not leave a part of a
/// component.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The umask applies to these permissions, as for every new file.
    let permissions = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}
