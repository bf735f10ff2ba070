//! JavaScript, on QuickJS.

use super::definition::{Definition, Keep, common_files, template, wit_files};
use super::ecmascript::{component, install, prepare, ways};
use super::project::Project;
use super::tools::Way;
use crate::error::Result;

pub const DEFINITION: Definition = Definition { files, ways, prepare, build };

fn files() -> Vec<(String, String)> {
    let own = [
        ("filter.js", template!("js/filter.js")),
        ("package.json", template!("js/package.json")),
        ("package-lock.json", template!("js/package-lock.json")),
        ("jsconfig.json", template!("js/jsconfig.json")),
        (".gitignore", template!("js/gitignore")),
    ];
    let own = own.map(|(path, text)| (path.to_owned(), text.to_owned()));
    own.into_iter().chain(common_files()).chain(wit_files()).collect()
}

fn build(project: &Project, way: &Way, _: Keep) -> Result<Vec<u8>> {
    prepare(project)?;
    install(project, way)?;
    component(project, "filter.js".as_ref(), "filter.js")
}
