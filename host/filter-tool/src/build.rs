//! `build`: makes a component from a directory, with the installed toolchains.

use std::path::{Path, PathBuf};

use crate::component;
use crate::componentize::componentize;
use crate::error::{Error, Result};
use crate::languages::{self, Keep, Project};

/// Builds the project in a directory. If `place` is a file, it is a core module of another
/// toolchain and becomes a component. Returns the component's path.
pub fn build(place: &Path, keep: Keep) -> Result<PathBuf> {
    let dir = place.canonicalize().map_err(Error::file("cannot open", place))?;
    if dir.is_file() {
        let module = component::read(&dir)?;
        let component =
            componentize(&module).map_err(|source| Error::Module { path: dir.clone(), source: Box::new(source) })?;
        return write(dir.with_extension("component.wasm"), &component);
    }
    let project = Project::open(&dir)?;
    let definition = languages::definition(project.language);
    let way = languages::first_complete(project.language.name(), (definition.ways)())?;
    let component = (definition.build)(&project, &way, keep)?;
    write(dir.join(format!("{}.wasm", project.name)), &component)
}

fn write(output: PathBuf, component: &[u8]) -> Result<PathBuf> {
    std::fs::write(&output, component).map_err(Error::file("cannot write", &output))?;
    say!("{}: {} bytes", output.display(), component.len());
    Ok(output)
}
