//! What JavaScript and TypeScript share: the packages from npm, the operations that a source
//! implements, and the engine that makes a component of it.

use std::path::Path;
use std::process::Command;

use super::bindings::Wit;
use super::declarations;
use super::definition::template;
use super::listing::Lister;
use super::project::Project;
use super::run::{output, run};
use super::tools::{Tool, Way};
use crate::error::{Error, Result};

/// Where the declarations are.
const DECLARATIONS: &str = "bindings/rbdkit.d.ts";

/// The script that lists what a source exports.
const EXPORTS: Lister = Lister {
    interpreter: "node",
    name: "exports.mjs",
    text: template!("js/exports.mjs"),
    spelled: declarations::camel,
};

/// node and npm. The packages come from npm's registry when a project is built first.
pub fn ways() -> Vec<Way> {
    let tools = vec![
        Tool::program("node", "node", &["--version"], "apt-get install nodejs"),
        Tool::program("npm", "npm", &["--version"], "apt-get install npm"),
    ];
    vec![Way { name: "npm", tools, command: vec!["npm".into()] }]
}

/// Makes the declarations for the editor.
pub fn prepare(project: &Project) -> Result<()> {
    declarations::write(&Wit::read(&project.path("wit"))?, &project.path(DECLARATIONS))
}

/// Installs the packages that package-lock.json names, unless this was done already.
pub fn install(project: &Project, way: &Way) -> Result<()> {
    let age = |path: &str| std::fs::metadata(project.path(path)).and_then(|data| data.modified()).ok();
    // npm writes this file at the end of an installation.
    let installed = age("node_modules/.package-lock.json");
    if installed.is_some() && installed >= age("package-lock.json") && installed >= age("package.json") {
        return Ok(());
    }
    let mut npm = way.run();
    // What npm prints is about the packages and not about the filter. Errors are shown.
    run(npm.current_dir(&project.dir).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    // Its time would otherwise be that of the package in the registry's cache.
    let mark = project.path("node_modules/.package-lock.json");
    let now = std::time::SystemTime::now();
    let file = std::fs::File::options().append(true).open(&mark).map_err(Error::file("cannot open", &mark))?;
    file.set_modified(now).map_err(Error::file("cannot change the time of", &mark))
}

/// A program of a package.
pub fn package(project: &Project, program: &str) -> Command {
    let mut command = Command::new(Path::new("node_modules/.bin").join(program));
    command.current_dir(&project.dir);
    command
}

/// Writes the script that finds what a module imports. Other scripts in `target/` import it.
pub fn write_resolver(project: &Project) -> Result<()> {
    let script = project.made()?.join("modules.mjs");
    std::fs::write(&script, template!("js/modules.mjs")).map_err(Error::file("cannot write", &script))
}

/// Compares what a source exports with the world, and makes a component of it. `root` is the
/// directory with what runs, and `first` the file in it that the host calls. The other files are
/// those that it imports. In messages and in the log they have the names that they have below
/// `root`.
pub fn component(project: &Project, root: &str, first: &str) -> Result<Vec<u8>> {
    write_resolver(project)?;
    EXPORTS.compare(project, &[root.as_ref(), first.as_ref()], first)?;
    let component = project.made()?.join("component.wasm");
    // The host's stubs serve WASI. With the tool's own stubs (`--stub-wasi`) an uncaught exception
    // would trap without a message, and so would reading the clock.
    let mut engine = package(project, "componentize-qjs");
    engine.args(["--wit", "wit", "-n", "mine", "--sync", "--module-root", root]);
    engine.arg("--js").arg(Path::new(root).join(first)).arg("-o").arg(&component);
    output(&mut engine)?;
    std::fs::read(&component).map_err(Error::file("cannot read", &component))
}
