//! Python, with PyPI's componentize-py, which puts an interpreter and the source into one
//! component.

use std::process::Command;

use super::definition::{Definition, Keep, append, template, with_world};
use super::listing::Lister;
use super::project::Project;
use super::run::{output, run};
use super::tools::{Tool, Way};
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition { files, ways, prepare, build };

/// The script that lists what a source implements.
const EXPORTS: Lister =
    Lister { interpreter: "python3", name: "exports.py", text: template!("python/exports.py"), spelled: str::to_owned };

/// Where the bindings are, for the editor and for tests in ordinary Python.
const BINDINGS: &str = "bindings";

fn files() -> Vec<(String, String)> {
    let mut files = with_world(&[
        ("filter.py", template!("python/filter.py")),
        ("fake_host.py", template!("python/fake_host.py")),
        ("test_filter.py", template!("python/test_filter.py")),
        ("pyproject.toml", template!("python/pyproject.toml")),
        ("test.sh", template!("python/test.sh")),
        (".gitignore", template!("python/gitignore")),
    ]);
    append(&mut files, "README.md", template!("python/README.md"));
    files
}

fn ways() -> Vec<Way> {
    let install = "python3 -m venv ~/.componentize && ~/.componentize/bin/pip install componentize-py, with \
                   ~/.componentize/bin in PATH";
    let tools = vec![
        Tool::program("python3", "python3", &["--version"], "apt-get install python3"),
        Tool::program("componentize-py", "componentize-py", &["--version"], install),
    ];
    vec![Way { name: "componentize-py", tools, command: vec!["componentize-py".into()] }]
}

/// The tool, with the project's contract and world.
fn componentize_py() -> Command {
    let mut command = Command::new("componentize-py");
    command.args(["-d", "wit", "-w", "mine"]);
    command
}

/// Makes the bindings, if the tool is here already.
fn prepare(project: &Project) -> Result<()> {
    match ways().iter().any(Way::is_complete) {
        true => bindings(project),
        false => Ok(()),
    }
}

fn bindings(project: &Project) -> Result<()> {
    let directory = project.path(BINDINGS);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).map_err(Error::file("cannot renew", &directory))?;
    }
    output(componentize_py().current_dir(&project.dir).args(["bindings", BINDINGS])).map(drop)
}

/// The host's stubs serve WASI. With the tool's own stubs (`--stub-wasi`) an exception would trap
/// without a message.
fn build(project: &Project, _: &Way, _: Keep) -> Result<Vec<u8>> {
    EXPORTS.compare(project, &["filter.py".as_ref()], "filter.py")?;
    bindings(project)?;
    let component = project.made()?.join("component.wasm");
    let mut command = componentize_py();
    command.current_dir(&project.dir).args(["componentize", "filter", "-p", ".", "-o"]).arg(&component);
    // A file beside the sources would become a part of the next component.
    run(command.env("PYTHONDONTWRITEBYTECODE", "1").stdout(std::process::Stdio::null()))?;
    std::fs::read(&component).map_err(Error::file("cannot read", &component))
}
