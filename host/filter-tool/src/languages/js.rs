//! JavaScript, with npm's componentize-qjs, which puts an engine and the source into one component.

use super::run::run;
use super::{Definition, Keep, Project, Tool, Way, common_files, nothing, template, wit_files};
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition {
    files: || {
        let own = [("filter.js", template!("js/filter.js")), (".gitignore", template!("js/gitignore"))];
        let own = own.map(|(path, text)| (path.to_owned(), text.to_owned()));
        own.into_iter().chain(common_files()).chain(wit_files()).collect()
    },
    ways: || {
        let tools = vec![
            Tool::program("node", "node", &["--version"], "apt-get install nodejs"),
            Tool::program("npx", "npx", &["--version"], "apt-get install npm"),
        ];
        vec![Way { name: "npx", tools, command: vec!["npx".into()] }]
    },
    prepare: nothing,
    build,
};

/// The host's stubs serve WASI. With the tool's own stubs (`--stub-wasi`) an uncaught exception
/// would trap without a message, and so would reading the clock.
fn build(project: &Project, way: &Way, _: Keep) -> Result<Vec<u8>> {
    let component = project.made()?.join("component.wasm");
    let mut command = way.run();
    command.current_dir(&project.dir).args(["--yes", "componentize-qjs@0.4.5", "--wit", "wit", "--js", "filter.js"]);
    run(command.args(["-n", "mine", "--sync", "-o"]).arg(&component))?;
    std::fs::read(&component).map_err(Error::file("cannot read", &component))
}
