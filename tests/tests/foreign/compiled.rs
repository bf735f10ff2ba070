//! The plugins that the tests compile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rbdkit_tests::server::root;
use rbdkit_tests::{Launch, TempDir};

/// A plugin of this directory, compiled with these definitions into a library in `dir`.
///
/// # Panics
/// If gcc or nbdkit's header is missing.
pub fn compile(dir: &TempDir, source: &str, definitions: &[&str]) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let library = dir.join(&format!("{source}-{}.so", NEXT.fetch_add(1, Ordering::Relaxed)));
    let source = root().join("tests/tests/foreign").join(format!("{source}.c"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wno-unused-function", "-Werror"])
        .args(definitions)
        .arg("-o")
        .arg(&library)
        .arg(&source);
    let done = gcc.output().expect("gcc: apt-get install gcc");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "apt-get install nbdkit-plugin-dev:\n{said}");
    library
}

/// The plugin `plugin.c` with its log.
pub struct Testing {
    pub dir: TempDir,
    pub library: PathBuf,
    pub log: PathBuf,
}

impl Testing {
    pub fn new(definitions: &[&str]) -> Testing {
        let dir = TempDir::new();
        let library = compile(&dir, "plugin", definitions);
        let log = dir.join("log");
        Testing { dir, library, log }
    }

    /// A server with the plugin, whose parameters these are besides its log.
    pub fn launch(&self, parameters: &[&str]) -> Launch {
        Launch::new([&self.library]).path("log", &self.log).args(parameters)
    }

    /// What was called so far.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(String::from).collect()
    }

    /// How often this was called.
    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|line| *line == call).count()
    }

    /// A file that is made when the plugin first misbehaves (`once=`).
    pub fn once(&self) -> String {
        format!("once={}", self.dir.join("happened").display())
    }
}

/// Debian's directory of plugins.
pub fn plugin_file(name: &str) -> PathBuf {
    let directory = Command::new("pkg-config").args(["nbdkit", "--variable=plugindir"]).output().expect("pkg-config");
    let directory = String::from_utf8(directory.stdout).expect("a directory");
    let file = Path::new(directory.trim()).join(format!("nbdkit-{name}-plugin.so"));
    assert!(file.exists(), "{}: apt-get install nbdkit nbdkit-plugin-dev", file.display());
    file
}
