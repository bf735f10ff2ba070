//! C++, with `zig c++`, which brings its own standard library for WebAssembly.

use super::c_family::{Build, prepare, with_zig};
use super::definition::{Definition, Keep, template, with_world};
use super::project::Project;
use super::tools::Way;
use crate::componentize::componentize;
use crate::error::Result;

pub const DEFINITION: Definition = Definition {
    files: || {
        with_world(&[
            ("filter.cpp", template!("cpp/filter.cpp")),
            ("rbdkit_filter.hpp", template!("cpp/rbdkit_filter.hpp")),
            (".gitignore", template!("c/gitignore")),
        ])
    },
    // Debian's clang has no standard library of C++ for WebAssembly.
    ways: || vec![with_zig("zig c++", Some("c++"))],
    prepare: |project| prepare(project, "clang++", "filter.cpp", OPTIONS),
    build,
};

const OPTIONS: &[&str] = &["-std=c++23", "-fno-exceptions"];

fn build(project: &Project, way: &Way, keep: Keep) -> Result<Vec<u8>> {
    let cc = with_zig("zig cc", Some("cc"));
    let build = Build::begin(project, &cc, keep)?;
    let objects = [build.object(way, "filter.cpp", OPTIONS)?];
    build.compare_operations(&objects)?;
    componentize(&build.link(way, &objects, OPTIONS)?)
}
