//! What `rbdkit-filter new` writes, in each language: it builds after it was moved, does what the
//! others do, and what is wrong in it is named.

mod go;
mod messages;
mod project;
mod several_files;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use project::{Project, walk};
use rbdkit_tests::server::root;
use rbdkit_tests::{toolchains, wait};

/// The directory with zig, which builds C++ and Zig, and C on a machine without clang.
fn zig() -> PathBuf {
    toolchains::from_pypi("ziglang==0.17.0")
}

#[test]
fn rust() {
    // What cargo builds is kept, the standard library among it, so that only the first run takes
    // long.
    let project = Project::new("rust", &[]);
    let built = root().join("target/template-rust");
    std::fs::create_dir_all(&built).expect("a directory");
    std::os::unix::fs::symlink(&built, project.dir.join("target")).expect("a link");
    // The versions that the built-in filters use are downloaded already.
    std::fs::copy(root().join("guest-filters/Cargo.lock"), project.dir.join("Cargo.lock")).expect("a copy");
    walk(project);
}

#[test]
fn c_with_clang() {
    walk(Project::new("c", &[]));
}

#[test]
fn c_with_zig() {
    // No clang is in this PATH.
    walk(Project::with_path("c", format!("{}:/nonexistent", zig().display())));
}

#[test]
fn cpp() {
    walk(Project::new("c++", &[zig()]));
}

#[test]
fn zig_itself() {
    walk(Project::new("zig", &[zig()]));
}

#[test]
fn js() {
    walk(Project::new("js", &[]));
}

#[test]
fn ts() {
    walk(Project::new("ts", &[]));
}

/// The directory with componentize-py.
fn componentize_py() -> PathBuf {
    toolchains::from_pypi("componentize-py==0.25.1")
}

#[test]
fn python() {
    let project = Project::new("python", &[componentize_py()]);
    // `new` made the bindings, since the tool is here.
    let tests = wait::output_within(
        Duration::from_secs(60),
        Command::new("python3").args(["-m", "unittest", "-q"]).current_dir(&project.dir),
    );
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&tests.stderr));
    walk(project);
}
