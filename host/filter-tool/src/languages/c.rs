//! C, with clang and Debian's wasi-libc, or with `zig cc`.

use super::c_family::{Build, prepare, with_clang, with_zig};
use super::definition::{Definition, Keep, template, with_world};
use super::project::Project;
use super::tools::Way;
use crate::componentize::componentize;
use crate::error::Result;

pub const DEFINITION: Definition = Definition {
    files: || {
        with_world(&[
            ("filter.c", template!("c/filter.c")),
            ("rbdkit_filter.h", template!("c/rbdkit_filter.h")),
            (".gitignore", template!("c/gitignore")),
        ])
    },
    ways: || vec![with_clang(), with_zig("zig cc", Some("cc"))],
    prepare: |project| prepare(project, "clang", "filter.c", OPTIONS),
    build,
};

const OPTIONS: &[&str] = &["-std=c17"];

fn build(project: &Project, way: &Way, keep: Keep) -> Result<Vec<u8>> {
    let build = Build::begin(project, way, keep)?;
    let objects = [build.object(way, "filter.c", OPTIONS)?];
    build.compare_operations(&objects)?;
    componentize(&build.link(way, &objects, &[])?)
}
