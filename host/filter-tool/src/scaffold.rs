//! `new`: creates a directory from which `build` makes a component.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::languages::{self, Language, PROJECT_FILE, Project, is_name};

/// Creates the directory.
pub fn new(name: &str, language: Language, dir: Option<PathBuf>) -> Result<()> {
    if !is_name(name) {
        return Err(Error::Name(name.to_string()));
    }
    let dir = dir.unwrap_or_else(|| PathBuf::from(name));
    if dir.exists() {
        return Err(Error::Exists(dir));
    }
    let definition = languages::definition(language);
    write(&dir.join(PROJECT_FILE), &Project::file(name, language))?;
    for (path, text) in (definition.files)() {
        // The contract and the SDK stay as they are.
        let is_filled = !path.starts_with("wit/deps/") && !path.starts_with("sdk/");
        let text = if is_filled {
            text.replace("@NAME@", name).replace("@LANGUAGE@", language.name()).replace("@TITLE@", language.title())
        } else {
            text
        };
        write(&dir.join(path), &text)?;
    }
    (definition.prepare)(&Project::open(&dir)?)?;
    say!("{} is ready: edit it, then", dir.display());
    say!("  rbdkit-filter build {}", dir.display());
    say!("  rbdkit-filter check {}", dir.join(format!("{name}.wasm")).display());
    say!("  rbdkit --wasm-filter {} memory 64M --run 'nbdinfo \"$uri\"'", dir.join(format!("{name}.wasm")).display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::file("cannot make", parent))?;
    }
    std::fs::write(path, text).map_err(Error::file("cannot write", path))?;
    if path.extension().is_some_and(|extension| extension == "sh") {
        let permissions = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, permissions).map_err(Error::file("cannot change the mode of", path))?;
    }
    Ok(())
}
