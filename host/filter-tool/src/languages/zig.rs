//! Zig, over the bindings for C, which `zig translate-c` turns into Zig.

use super::c_family::{self, BINDINGS, Build, with_zig};
use super::definition::{Definition, Keep, template, with_world};
use super::project::Project;
use super::run::run;
use super::tools::Way;
use crate::componentize::componentize;
use crate::error::Result;

pub const DEFINITION: Definition = Definition {
    files: || {
        with_world(&[
            ("filter.zig", template!("zig/filter.zig")),
            ("rbdkit.zig", template!("zig/rbdkit.zig")),
            (".gitignore", template!("c/gitignore")),
        ])
    },
    ways: || vec![with_zig("zig", None)],
    prepare: c_family::bindings,
    build,
};

fn build(project: &Project, way: &Way, keep: Keep) -> Result<Vec<u8>> {
    let cc = with_zig("zig cc", Some("cc"));
    let build = Build::begin(project, &cc, keep)?;
    let mut translate = way.run();
    translate.current_dir(&project.dir).args(["translate-c", "-target", "wasm32-wasi", "-lc", "-I", BINDINGS]);
    translate.arg(format!("{BINDINGS}/mine.h"));
    c_family::output_to(&mut translate, &project.path(BINDINGS).join("mine.zig"))?;
    let object = project.made()?.join("filter.o");
    let mut compile = way.run();
    compile.current_dir(&project.dir).args(["build-obj", "-target", "wasm32-wasi", "-O", "ReleaseSafe", "-lc"]);
    compile.args(["--dep", "mine", "-Mroot=filter.zig"]).arg(format!("-Mmine={BINDINGS}/mine.zig"));
    compile.arg(format!("-femit-bin={}", object.display()));
    run(&mut compile)?;
    let objects = [object];
    build.compare_operations(&objects)?;
    componentize(&build.link(&cc, &objects, &[])?)
}
