//! What C, C++ and Zig share: bindings in C, objects for WASI, and a linker's command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::bindings::Wit;
use super::definition::Keep;
use super::module;
use super::operations::{self, Interfaces};
use super::project::Project;
use super::run::{output, run};
use super::tools::{Tool, Way, below_llvm};
use crate::error::{Error, Result};

/// Where the bindings are, so that an editor finds them.
pub const BINDINGS: &str = "bindings";

/// The stack, in bytes. It is part of each instance's memory. It comes first in the memory, so that
/// an overflow traps instead of overwriting the filter's variables.
const STACK: &str = "1048576";

/// What the name of an exported function begins with in C.
const PREFIX: &str = "exports_rbdkit_filter_";

/// Options of every compiler of the family.
const TARGET: [&str; 2] = ["--target=wasm32-wasi", "-O2"];

/// Options that ask for warnings.
const WARNINGS: [&str; 2] = ["-Wall", "-Wextra"];

/// clang with Debian's C library for WASI, which lld links.
pub fn with_clang() -> Way {
    Way {
        name: CLANG,
        tools: vec![
            Tool::program("clang", "clang", &["--version"], "apt-get install clang"),
            Tool::program("wasm-ld", "wasm-ld", &["--version"], "apt-get install lld"),
            Tool::file("wasi-libc", [PathBuf::from("/usr/lib/wasm32-wasi/libc.a")], "apt-get install wasi-libc"),
            Tool::file(
                "clang's library for WebAssembly",
                below_llvm("lib/wasi/libclang_rt.builtins-wasm32.a"),
                "apt-get install libclang-rt-14-dev-wasm32",
            ),
        ],
        command: vec!["clang".into()],
    }
}

/// The name of the way with clang.
const CLANG: &str = "clang";

/// Zig, which brings a C compiler, a linker and the libraries. `part` is what of it is run: cc,
/// c++, build-exe.
pub fn with_zig(name: &'static str, part: Option<&str>) -> Way {
    let install = "python3 -m venv ~/.zig && ~/.zig/bin/pip install ziglang, with ~/.zig/bin in PATH (or zig itself)";
    let alone = Tool::program("zig", "zig", &["version"], install);
    let (tool, mut command): (Tool, Vec<OsString>) = match alone.is_here() {
        true => (alone, vec!["zig".into()]),
        false => (
            match Tool::program("zig", "python3", &["-m", "ziglang", "version"], install) {
                Tool { found: Err(_), .. } => alone,
                found => found,
            },
            vec!["python3".into(), "-m".into(), "ziglang".into()],
        ),
    };
    command.extend(part.map(OsString::from));
    Way { name, tools: vec![tool], command }
}

/// A build of one project.
pub struct Build<'a> {
    pub project: &'a Project,
    /// How C is compiled and everything is linked.
    pub cc: &'a Way,
    pub keep: Keep,
    bindings: Bindings,
    /// What the world exports, and what it could export.
    exported: Interfaces,
    all: Interfaces,
}

/// The files of the bindings that are compiled and linked.
struct Bindings {
    /// The source in C.
    source: PathBuf,
    /// The object with the component's type.
    component_type: PathBuf,
}

impl<'a> Build<'a> {
    /// Begins a build: makes the bindings.
    pub fn begin(project: &'a Project, cc: &'a Way, keep: Keep) -> Result<Build<'a>> {
        let wit = Wit::read(&project.path("wit"))?;
        let (exported, all) = (wit.exports(), wit.everything());
        let bindings = Bindings::make(wit, project)?;
        Ok(Build { project, cc, keep, bindings, exported, all })
    }

    /// The compiler with the options of the target. The paths that it is given, and that it names
    /// in its messages, are those of the project.
    pub fn compiler(&self, way: &Way) -> Command {
        let mut command = way.run();
        command.current_dir(&self.project.dir).args(TARGET);
        if way.name == CLANG {
            command.arg("--sysroot=/usr");
        }
        command.arg(if self.keep == Keep::Debugging { "-g" } else { "-g0" });
        command
    }

    /// Compiles one of the author's sources.
    pub fn object(&self, way: &Way, source: &str, options: &[&str]) -> Result<PathBuf> {
        let object = self.project.made()?.join(source).with_extension("o");
        let mut command = self.compiler(way);
        command.args(WARNINGS).args(options).args(["-I", BINDINGS, "-c", source, "-o"]).arg(&object);
        run(&mut command)?;
        Ok(object)
    }

    /// Fails if the objects do not implement what the world exports, or more than that.
    pub fn compare_operations(&self, objects: &[PathBuf]) -> Result<()> {
        let mut defined = BTreeSet::new();
        for object in objects {
            let bytes = std::fs::read(object).map_err(Error::file("cannot read", object))?;
            defined.extend(module::defined_functions(&bytes));
        }
        operations::compare(&self.exported, &self.all, "wit/world.wit", |interface, function| {
            let name = format!("{PREFIX}{}_{}", interface.replace('-', "_"), function.replace('-', "_"));
            // A function that the header does not declare has C++'s own name for it.
            let mangled = format!("_Z{}{name}", name.len());
            defined.contains(&name)
                || defined.range(mangled.clone()..).next().is_some_and(|next| next.starts_with(&mangled))
        })
    }

    /// Links objects with the bindings. Returns the core module.
    pub fn link(&self, way: &Way, objects: &[PathBuf], options: &[&str]) -> Result<Vec<u8>> {
        let Bindings { source, component_type } = &self.bindings;
        let made = self.project.made()?;
        // Not with the author's warnings: the source is a generator's.
        let glue = made.join("bindings.o");
        let mut command = self.compiler(self.cc);
        run(command.args(["-w", "-I", BINDINGS, "-c"]).arg(source).arg("-o").arg(&glue))?;
        let linked = made.join("module.wasm");
        let mut command = self.compiler(way);
        command.args(["-mexec-model=reactor", &format!("-Wl,-z,stack-size={STACK}")]);
        if way.name == CLANG {
            // Zig does so by itself, and does not know the option.
            command.arg("-Wl,--stack-first");
        }
        command.args(options).args(objects).arg(&glue).arg(component_type).arg("-o").arg(&linked);
        run(&mut command)?;
        let bytes = std::fs::read(&linked).map_err(Error::file("cannot read", &linked))?;
        let module = module::trimmed(bytes, self.keep);
        std::fs::write(&linked, &module).map_err(Error::file("cannot write", &linked))?;
        Ok(module)
    }
}

impl Bindings {
    fn make(wit: Wit, project: &Project) -> Result<Bindings> {
        let into = project.path(BINDINGS);
        let names = wit.c_bindings(&into)?;
        let find = |end: &str| {
            let name = names.iter().find(|name| name.ends_with(end));
            name.map(|name| into.join(name)).ok_or(Error::NoBindings { end: end.to_owned() })
        };
        Ok(Bindings { source: find(".c")?, component_type: find(".o")? })
    }
}

/// Makes the bindings of a project, for its editor.
pub fn bindings(project: &Project) -> Result<()> {
    Bindings::make(Wit::read(&project.path("wit"))?, project).map(drop)
}

/// Makes the bindings and `compile_commands.json`, which tells editors how a source is compiled.
pub fn prepare(project: &Project, compiler: &str, source: &str, options: &[&str]) -> Result<()> {
    bindings(project)?;
    let command: Vec<&str> = [compiler]
        .iter()
        .chain(&TARGET)
        .chain(&WARNINGS)
        .chain(options)
        .chain(&["-I", BINDINGS, "-c", source])
        .copied()
        .collect();
    let text = serde_json::json!([{ "directory": ".", "file": source, "arguments": command }]);
    let path = project.path("compile_commands.json");
    std::fs::write(&path, format!("{text:#}\n")).map_err(Error::file("cannot write", &path))
}

/// The output of a tool, written to a file.
pub fn output_to(command: &mut Command, path: &Path) -> Result<()> {
    let text = output(command)?;
    std::fs::write(path, text).map_err(Error::file("cannot write", path))
}
