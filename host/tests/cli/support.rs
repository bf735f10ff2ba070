//! Runs the program and waits for its effects: files by inotify, processes by their descriptors.
//! Nothing here waits for a fixed time; the limit of a minute only turns a hang into a failure.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

const A_MINUTE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A directory that is removed after the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rbdkit-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of the files in it.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rbdkit");

/// The distribution's Python comes first, because nbdsh uses the first one and only that one has
/// libnbd.
pub fn path() -> String {
    format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default())
}

/// The program, in a directory of the test's.
pub fn rbdkit(directory: &TempDir) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir(directory.path()).stdin(Stdio::null());
    command.env("PATH", path());
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "tls"] {
        command.env_remove(name);
    }
    command
}

/// The result of a program.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs it to its end.
pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    let status = output.status.code().unwrap_or_else(|| panic!("{command:?} ended by a signal: {output:?}"));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs it with these arguments.
pub fn run<S: AsRef<OsStr>>(directory: &TempDir, args: &[S]) -> Outcome {
    outcome(rbdkit(directory).args(args))
}

/// A command line without quoting.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Waits until the file is there.
pub fn wait_for_file(path: &Path) {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&events, path.parent().unwrap(), inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)
        .unwrap();
    let mut buffer = [0; 4096];
    // Checked after the watch was set up, so that no event is missed.
    while !path.exists() {
        wait_readable(&events, &format!("{} to appear", path.display()));
        rustix::io::read(&events, &mut buffer).unwrap();
    }
}

fn wait_readable(fd: &impl AsFd, what: &str) {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    assert_ne!(poll(&mut fds, Some(&A_MINUTE)).unwrap(), 0, "waited for a minute for {what}");
}

/// A process that is not a child of the test.
pub struct Process(OwnedFd);

impl Process {
    pub fn of(pid: i32) -> Process {
        Process::find(pid).expect("a process")
    }

    /// None if it has ended and was waited for.
    pub fn find(pid: i32) -> Option<Process> {
        pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).ok().map(Process)
    }

    /// The process that a pid file names.
    pub fn in_file(path: &Path) -> (i32, Process) {
        let text = std::fs::read_to_string(path).unwrap();
        let pid = text.strip_suffix('\n').expect("a line").parse().unwrap();
        (pid, Process::of(pid))
    }

    pub fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.0, signal).unwrap();
    }

    pub fn wait(&self) {
        wait_readable(&self.0, "a process to end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is still there only if the test failed.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// A child that is killed if the test does not wait for it.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its exit status.
    pub fn status(mut self) -> ExitStatus {
        Process::of(self.0.id().try_into().unwrap()).wait_kept();
        self.0.wait().unwrap()
    }

    /// The first line of its standard output.
    pub fn wait_for_output(&mut self, what: &str) -> String {
        let stdout = self.0.stdout.as_mut().unwrap();
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            wait_readable(stdout, what);
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the program ended before it said: {what}");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Reads lines of its standard error until one contains `what`.
    pub fn wait_for_line(&mut self, what: &str) -> String {
        let stderr = self.0.stderr.as_mut().unwrap();
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            wait_readable(stderr, what);
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "the program ended before it said: {what}");
            match byte[0] {
                b'\n' => {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if text.contains(what) {
                        return text;
                    }
                    line.clear();
                }
                other => line.push(other),
            }
        }
    }
}

impl Process {
    /// Waits for the end. The caller reaps the process, so this handle is not dropped.
    fn wait_kept(self) {
        self.wait();
        std::mem::forget(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server's greeting: its handshake flags.
pub fn greeting(mut stream: impl Read) -> u16 {
    let mut bytes = [0; 18];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes[..16], b"NBDMAGICIHAVEOPT");
    u16::from_be_bytes([bytes[16], bytes[17]])
}

/// Answers the greeting and says goodbye (NBD_OPT_ABORT).
pub fn leave(mut stream: impl Read + Write) {
    stream.write_all(&[0, 0, 0, 1]).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

/// Connects to a server on a Unix socket and checks that it answers.
pub fn says_hello(socket: &Path) {
    let stream = UnixStream::connect(socket).unwrap();
    assert_eq!(greeting(&stream) & 1, 1, "fixed newstyle");
    leave(stream);
}

/// The output of a program that has to succeed.
pub fn output_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
