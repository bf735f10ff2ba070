//! `rbdkit-filter dev`: the author saves a file, and live clients get the new code.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rbdkit_tests::server::{children, program};
use rbdkit_tests::{Client, TempDir, wait};
use rustix::process::{Pid, Signal, kill_process};

/// The tool at work. Dropping it kills it, and its server ends with it.
struct Dev {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Dev {
    fn start(arguments: &[&str]) -> Dev {
        let mut command = Command::new(program().with_file_name("rbdkit-filter"));
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
        let said = wait::holds_before(wait::Deadline::new(), || self.said().matches(what).count() >= times);
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
    let dir = TempDir::new();
    let mine = dir.join("mine").display().to_string();
    let mut new = Command::new(program().with_file_name("rbdkit-filter"));
    let made = wait::output(new.args(["new", "mine", "--lang", "c", "--dir", &mine]));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir.sparse_file("disk.img", 1 << 20);
    let source = std::fs::read_to_string(dir.join("mine/filter.c")).expect("the template");
    (dir, mine, source)
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
