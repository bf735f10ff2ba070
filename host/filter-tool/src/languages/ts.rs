//! TypeScript, checked by its compiler, on QuickJS. The types are blanked out, so lines and columns
//! are those of the author's file.

use super::definition::{Definition, Keep, template, with_world};
use super::ecmascript::{component, install, package, prepare, ways};
use super::project::Project;
use super::run::{output, run};
use super::tools::Way;
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition { files, ways, prepare, build };

/// The script that takes the types out.
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
    let made = project.made()?;
    let script = made.join("blank.mjs");
    std::fs::write(&script, BLANK).map_err(Error::file("cannot write", &script))?;
    let text = output(std::process::Command::new("node").current_dir(&project.dir).arg(&script).arg("filter.ts"))?;
    // The log names this file, so it is called like the author's.
    let plain = made.join("filter.ts");
    std::fs::write(&plain, text).map_err(Error::file("cannot write", &plain))?;
    component(project, &plain, "filter.ts")
}
