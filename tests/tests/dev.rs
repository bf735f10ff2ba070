//! `rbdkit-filter dev`: the author saves a file, and live clients get the new code.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rbdkit_tests::server::{children, program, root};
use rbdkit_tests::{Client, TempDir, toolchains, wait};
use rustix::process::{Pid, Signal, kill_process};

/// The tool at work. Dropping it kills it, and its server ends with it.
struct Dev {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Dev {
    fn start(arguments: &[&str]) -> Dev {
        Dev::start_with(&[], arguments)
    }

    /// The same with these directories first in PATH.
    fn start_with(directories: &[PathBuf], arguments: &[&str]) -> Dev {
        let mut command = Command::new(program().with_file_name("rbdkit-filter"));
        command.env("PATH", toolchains::path_with(directories));
        command.arg("dev").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("rbdkit-filter");
        let said = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("a pipe")), Box::new(child.stderr.take().expect("a pipe"))];
        for stream in streams {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&format!("{line}\n"));
                }
            });
        }
        Dev { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said this `times` times.
    fn says(&self, what: &str, times: usize) {
        self.says_within(wait::Deadline::new(), what, times);
    }

    /// The same for what a slow compiler has to do first.
    fn says_within(&self, deadline: wait::Deadline, what: &str, times: usize) {
        let said = wait::holds_before(deadline, || self.said().matches(what).count() >= times);
        assert!(said, "it never said {what:?} {times} times:\n{}", self.said());
    }

    fn client(&self) -> Client {
        self.says("\nnbdinfo ", 1);
        let said = self.said();
        let socket = said.lines().find_map(|line| line.strip_prefix("nbd+unix://?socket=")).expect("a URI");
        Client::connect(Path::new(socket))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A project in C, a disk of zeroes, and the project's source.
fn project() -> (TempDir, String, String) {
    project_in("c", "filter.c")
}

/// The same in another language, whose source is this file.
fn project_in(language: &str, file: &str) -> (TempDir, String, String) {
    let dir = TempDir::new();
    let mine = dir.join("mine").display().to_string();
    let mut new = Command::new(program().with_file_name("rbdkit-filter"));
    let made = wait::output(new.args(["new", "mine", "--lang", language, "--dir", &mine]));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir.sparse_file("disk.img", 1 << 20);
    let source = std::fs::read_to_string(dir.join("mine").join(file)).expect("the template");
    (dir, mine, source)
}

/// How long a build may take. The first one in Rust compiles the standard library.
const BUILD: Duration = Duration::from_secs(1200);

/// A language, its file, and an edit that changes what the filter does, with the byte that a zero
/// on the disk then reads as; then an edit that does not compile, and what the compiler says of it.
struct Language {
    name: &'static str,
    file: &'static str,
    change: (&'static str, &'static str),
    mistake: (&'static str, &'static str),
    complaint: &'static str,
}

/// A change reaches a live connection, and a mistake is shown and leaves the last version.
fn reloads(language: &Language, directories: &[PathBuf], prepare: impl FnOnce(&Path)) {
    let (dir, mine, source) = project_in(language.name, language.file);
    prepare(&dir.join("mine"));
    let (file, disk) = (dir.join("mine").join(language.file), dir.join("disk.img").display().to_string());
    let change = |(from, to): (&str, &str)| {
        assert!(source.contains(from), "{from:?} is not in the template");
        std::fs::write(&file, source.replacen(from, to, 1)).expect("a change");
    };
    let within = || wait::Deadline::after(BUILD);
    let dev = Dev::start_with(directories, &[&mine, "--", "file", &disk]);
    dev.says_within(within(), "\nnbdinfo ", 1);
    let mut client = dev.client();
    assert_eq!(client.read(0, 4).expect("a read"), [255; 4]);
    change(language.change);
    dev.says_within(within(), ": connections: 1 moved, 0 stay with the old version", 1);
    assert_eq!(client.read(0, 4).expect("a read"), [254; 4]);
    change(language.mistake);
    dev.says_within(within(), "waiting for a change: the last version serves on", 1);
    assert!(dev.said().contains(language.complaint), "{}", dev.said());
    assert_eq!(client.read(0, 4).expect("a read"), [254; 4]);
}

#[test]
fn a_change_in_rust_reaches_a_live_connection() {
    let rust = Language {
        name: "rust",
        file: "src/lib.rs",
        change: ("key: u8 = 255", "key: u8 = 254"),
        mistake: ("Ok(Mine {", "Ok(Mime {"),
        complaint: "error[E0422]: cannot find struct, variant or union type `Mime`",
    };
    reloads(&rust, &[], |project| {
        // What cargo builds is kept for the next run.
        let built = root().join("target/template-rust");
        std::fs::create_dir_all(&built).expect("a directory");
        std::os::unix::fs::symlink(&built, project.join("target")).expect("a link");
        std::fs::copy(root().join("guest-filters/Cargo.lock"), project.join("Cargo.lock")).expect("a copy");
    });
}

#[test]
fn a_change_in_javascript_reaches_a_live_connection() {
    let js = Language {
        name: "js",
        file: "filter.js",
        change: ("new Uint8Array([255])", "new Uint8Array([254])"),
        mistake: ("const PAYLOAD = 0;", "const PAYLOAD = ;"),
        complaint: "filter.js:11:17: Unexpected token",
    };
    reloads(&js, &[], |_| ());
}

#[test]
fn a_change_in_python_reaches_a_live_connection() {
    let python = Language {
        name: "python",
        file: "filter.py",
        change: ("b\"\\xff\"", "b\"\\xfe\""),
        mistake: ("PAYLOAD = 0", "PAYLOAD = ("),
        complaint: "filter.py:15:11: '(' was never closed",
    };
    reloads(&python, &[toolchains::from_pypi("componentize-py==0.25.1")], |_| ());
}

#[test]
fn a_saved_file_is_built_and_reloaded_and_an_error_leaves_the_last_version() {
    let (dir, mine, source) = project();
    let (file, disk) = (dir.join("mine/filter.c"), dir.join("disk.img").display().to_string());
    let mut dev = Dev::start(&[&mine, "--", "file", &disk]);
    // The template changes every bit.
    let mut client = dev.client();
    assert_eq!(client.read(0, 4).expect("a read"), [255; 4]);
    std::fs::write(&file, source.replace("255", "254").replace("0xff", "0xfe")).expect("a change");
    dev.says(": connections: 1 moved, 0 stay with the old version", 1);
    assert_eq!(client.read(0, 4).expect("a read"), [254; 4]);
    // An error of the compiler's is shown, and the server serves on.
    std::fs::write(&file, format!("{source}\nint wrong = ;\n")).expect("a change");
    dev.says("waiting for a change: the last version serves on", 1);
    assert!(dev.said().contains("error: expected expression"), "{}", dev.said());
    assert_eq!(client.read(0, 4).expect("a read"), [254; 4]);
    std::fs::write(&file, &source).expect("a change");
    dev.says(": connections: 1 moved, 0 stay with the old version", 2);
    assert_eq!(client.read(0, 4).expect("a read"), [255; 4]);
    client.disconnect();
    let servers = children(dev.child.id());
    assert_eq!(servers.len(), 1, "a server, and no compiler any more");
    dev.signal(Signal::INT);
    wait::until("the end of dev", || dev.child.try_wait().is_ok_and(|status| status.is_some()));
    assert!(dev.child.wait().expect("its status").success());
    assert!(!Path::new(&format!("/proc/{}", servers[0])).exists(), "the server has ended before dev");
}

#[test]
fn a_first_build_that_fails_and_a_server_that_ends_are_mended_by_the_next_change() {
    let (dir, mine, source) = project();
    let (file, disk) = (dir.join("mine/filter.c"), dir.join("disk.img").display().to_string());
    std::fs::write(&file, "int wrong = ;\n").expect("a change");
    let dev = Dev::start(&[&mine, "key=7", "--", "file", &disk]);
    dev.says("waiting for a change\n", 1);
    std::fs::write(&file, &source).expect("a change");
    assert_eq!(dev.client().read(0, 4).expect("a read"), [7; 4]);
    let server = children(dev.child.id());
    kill_process(Pid::from_raw(server[0].cast_signed()).expect("its number"), Signal::KILL).expect("a signal");
    dev.says("the server has ended (signal: 9 (SIGKILL)): the next change starts it again", 1);
    std::fs::write(&file, format!("{source}\n/* changed */\n")).expect("a change");
    dev.says("\nnbdinfo ", 2);
}
