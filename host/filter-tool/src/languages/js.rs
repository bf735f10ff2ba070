//! JavaScript, on QuickJS.

use super::definition::{Definition, Keep, template, with_world};
use super::ecmascript::{component, install, prepare, ways};
use super::project::Project;
use super::tools::Way;
use crate::error::Result;

pub const DEFINITION: Definition = Definition { files, ways, prepare, build };

fn files() -> Vec<(String, String)> {
    with_world(&[
        ("filter.js", template!("js/filter.js")),
        ("package.json", template!("js/package.json")),
        ("package-lock.json", template!("js/package-lock.json")),
        ("jsconfig.json", template!("js/jsconfig.json")),
        (".gitignore", template!("js/gitignore")),
    ])
}

fn build(project: &Project, way: &Way, _: Keep) -> Result<Vec<u8>> {
    prepare(project)?;
    install(project, way)?;
    component(project, ".", "filter.js")
}
