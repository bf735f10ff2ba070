//! A project of an author, and the way from `new` to a server with clients.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rbdkit_tests::server::program;
use rbdkit_tests::{Launch, Rng, TempDir, seed, tool, toolchains, wait};

/// How long the tool may take. The first build of some languages compiles their libraries.
const LIMIT: Duration = Duration::from_secs(1200);

/// A directory that `new` made.
pub struct Project {
    _temp: TempDir,
    pub dir: PathBuf,
    /// The PATH in which its tools are looked for.
    path: String,
    language: &'static str,
}

impl Project {
    /// Makes a project called `mine`. These directories come first in PATH.
    pub fn new(language: &'static str, directories: &[PathBuf]) -> Project {
        Project::with_path(language, toolchains::path_with(directories))
    }

    /// The same with just this PATH.
    pub fn with_path(language: &'static str, path: String) -> Project {
        let temp = TempDir::new();
        let dir = temp.join("first");
        let project = Project { dir, path, language, _temp: temp };
        let dir = project.dir.to_str().expect("a path").to_owned();
        project.ok(&["new", "mine", "--lang", language, "--dir", &dir]);
        project
    }

    /// Moves the directory, with what a build left in it.
    pub fn move_elsewhere(&mut self) {
        let other = self._temp.join("another place");
        std::fs::rename(&self.dir, &other).expect("a directory that can be moved");
        self.dir = other;
    }

    /// The component that a build makes.
    pub fn component(&self) -> PathBuf {
        self.dir.join("mine.wasm")
    }

    /// Replaces text in a file of the project.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.dir.join(file);
        let text = std::fs::read_to_string(&path).expect("a file of the template");
        assert!(text.contains(from), "{} {file} has no {from:?}", self.language);
        std::fs::write(&path, text.replacen(from, to, 1)).expect("the file can be written");
    }

    /// Runs the tool. The result is whether it succeeded, its standard output and its standard
    /// error.
    pub fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(program().with_file_name("rbdkit-filter"));
        // Caches of compilers are kept for the next run.
        command.env("PATH", &self.path).env("ZIG_GLOBAL_CACHE_DIR", toolchains::place().join("zig-cache"));
        command.env("GOCACHE", toolchains::place().join("go-cache"));
        let output = wait::output_within(LIMIT, command.args(arguments));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// Runs the tool, which has to succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let (success, out, error) = self.run(arguments);
        assert!(success, "{}: {arguments:?}: {error}{out}", self.language);
        out
    }

    /// Builds it.
    pub fn build(&self) {
        self.ok(&["build", self.dir.to_str().expect("a path")]);
    }

    /// Builds it, which has to fail. The result is standard output, to which some compilers write
    /// their errors, and standard error.
    pub fn fails_to_build(&self) -> String {
        let (success, out, error) = self.run(&["build", self.dir.to_str().expect("a path")]);
        assert!(!success, "{}: it was built: {out}", self.language);
        out + &error
    }
}

/// The size of the image that is copied: not a multiple of any block.
const IMAGE: usize = (3 << 20) + 1234;

/// Builds a project, moves it, builds and checks it again, calls and measures it, and serves with
/// it.
pub fn walk(mut project: Project) {
    project.build();
    std::fs::remove_file(project.component()).expect("the component");
    project.move_elsewhere();
    project.build();
    let component = project.component();
    let component = component.to_str().expect("a path").to_owned();
    let text = project.ok(&["inspect", &component]);
    assert!(text.starts_with("mine 0.1.0: exclusive-or with a number\n"), "{text}");
    assert!(text.contains("key=INT") && text.contains("reads") && text.contains("writes"), "{text}");
    project.ok(&["check", &component, "key=7", "--transforms", "bijective", "--ops", "150"]);
    let call = project.ok(&["call", &component, "pread", "4096", "512", "key=7"]);
    for part in ["next.pread(offset=4096, length=512", "buffer.xor(", "answer: ok, 512 bytes"] {
        assert!(call.contains(part), "no {part:?} in {call}");
    }
    let bench = project.ok(&["bench", &component, "key=7", "--time", "1s", "--json"]);
    let bench: serde_json::Value = serde_json::from_str(&bench).expect("JSON");
    assert_eq!(bench["workloads"].as_array().map(Vec::len), Some(12), "{bench}");
    serves(&component);
    let refused = Launch::new(["--wasm-filter", &component, "memory", "1M", "key=256"]).try_start();
    let refused = refused.err().expect("a value that is too large");
    assert!(refused.stderr.contains("error: mine: key=256: is not from 0 to 255\n"), "{}", refused.stderr);
}

/// Copies an image in and out through the filter. On the disk below each byte is XORed.
fn serves(component: &str) {
    let seed = seed();
    println!("RBDKIT_SEED={seed}");
    let dir = TempDir::new();
    let image = Rng::new(seed).bytes(IMAGE);
    let source = dir.file("source.img", &image);
    let disk = dir.sparse_file("disk.img", IMAGE as u64);
    for (parameter, key) in [(None, 255), (Some("key=32"), 32)] {
        let server = Launch::new(["--wasm-filter", component, "file"]).path("file", &disk).args(parameter).start();
        let copy = dir.join("copy.img");
        nbdcopy(source.as_ref(), server.uri().as_ref());
        nbdcopy(server.uri().as_ref(), copy.as_ref());
        server.stop();
        assert!(std::fs::read(&copy).expect("the copy") == image, "what comes out is not what went in");
        let below = std::fs::read(&disk).expect("the disk");
        assert!(below.iter().zip(&image).all(|(below, byte)| below ^ key == *byte), "key={key}: the disk below");
    }
}

fn nbdcopy(from: &Path, to: &Path) {
    tool("nbdcopy", ["--flush".as_ref(), from.as_os_str(), to.as_os_str()]).ok();
}
