//! TypeScript, checked by its compiler, on QuickJS. The types are blanked out, so lines and columns
//! are those of the author's file.

use std::process::Command;

use super::definition::{Definition, Keep, template, with_world};
use super::ecmascript::{component, install, package, prepare, ways, write_resolver};
use super::project::Project;
use super::run::run;
use super::tools::Way;
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition { files, ways, prepare, build };

/// The script that takes the types out of the files.
const BLANK: &str = template!("ts/blank.mjs");

fn files() -> Vec<(String, String)> {
    with_world(&[
        ("filter.ts", template!("ts/filter.ts")),
        ("package.json", template!("ts/package.json")),
        ("package-lock.json", template!("ts/package-lock.json")),
        ("tsconfig.json", template!("ts/tsconfig.json")),
        (".gitignore", template!("js/gitignore")),
    ])
}

fn build(project: &Project, way: &Way, _: Keep) -> Result<Vec<u8>> {
    prepare(project)?;
    install(project, way)?;
    run(package(project, "tsc").args(["--noEmit", "--project", "."]))?;
    let script = project.made()?.join("blank.mjs");
    std::fs::write(&script, BLANK).map_err(Error::file("cannot write", &script))?;
    write_resolver(project)?;
    // The log names the files in this directory, so they are called like the author's.
    let plain = "target/source";
    let mut node = Command::new("node");
    run(node.current_dir(&project.dir).arg("target/blank.mjs").args(["filter.ts", plain]))?;
    component(project, plain, "filter.ts")
}
