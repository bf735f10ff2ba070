//! A server for one test. It listens on a Unix socket in a directory of its own and ends with the
//! test.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::wait::{self, Deadline, TIMEOUT};

/// The repository's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The program under test.
pub fn program() -> PathBuf {
    match std::env::var_os("RBDKIT") {
        Some(path) => PathBuf::from(path),
        None => root().join("target/release/rbdkit"),
    }
}

/// The component of a built-in filter, as `make` leaves it.
pub fn filter(name: &str) -> PathBuf {
    root().join("target/filters").join(format!("{name}.wasm"))
}

/// Whether the program under test is Debian's nbdkit. The tests themselves are tried against it.
pub fn is_nbdkit() -> bool {
    program().file_name() == Some(OsStr::new("nbdkit"))
}

/// A port of 127.0.0.1 that nobody listens on at the moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A directory that is removed with everything in it.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes a new directory.
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rbdkit-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory for the test");
        TempDir(path)
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a file with these bytes and gives its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).expect("a file for the test");
        path
    }

    /// Writes a program into it, for example a script with its first line.
    pub fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name, text.as_bytes());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("an executable");
        path
    }

    /// Makes a file of `size` bytes that is one hole, and gives its path.
    pub fn sparse_file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(size)).expect("a file for the test");
        path
    }
}

impl Default for TempDir {
    fn default() -> TempDir {
        TempDir::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A failed test has printed what it read; the directory is of no more use.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that is to be started: its program, arguments and environment.
pub struct Launch {
    program: PathBuf,
    /// The options in front of the socket's path, and the option in front of the pid file's path.
    socket: (&'static [&'static str], &'static str),
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// Where standard error goes; `None` collects it.
    stderr: Option<Stdio>,
}

impl Launch {
    /// The program under test with these arguments after those for the socket.
    pub fn new<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Launch {
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        Launch { program: program(), socket: (&["-f", "-U"], "-P"), arguments, environment: Vec::new(), stderr: None }
    }

    /// Takes another program than the one under test.
    pub fn program(mut self, program: PathBuf) -> Launch {
        self.program = program;
        self
    }

    /// Sets the options in front of the socket's path and of the pid file's, for programs with
    /// other options.
    pub fn socket_options(mut self, socket: &'static [&'static str], pid_file: &'static str) -> Launch {
        self.socket = (socket, pid_file);
        self
    }

    /// Adds an argument at the end.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Launch {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments at the end.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Launch {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Adds `key=path` at the end.
    pub fn path(self, key: &str, path: &Path) -> Launch {
        let mut argument = OsString::from(key);
        argument.push("=");
        argument.push(path);
        self.arg(argument)
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Launch {
        self.environment.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Puts a program with this text, which is called `name`, in front of those in PATH.
    pub fn with_program(self, dir: &TempDir, name: &str, text: &str) -> Launch {
        dir.program(name, text);
        let path = std::env::var("PATH").unwrap_or_default();
        self.env("PATH", format!("{}:{path}", dir.path().display()))
    }

    /// Gives the server this as standard error. Then [`Server::stderr`] is empty.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Launch {
        self.stderr = Some(stderr.into());
        self
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Panics
    /// If the server ends instead. The message has its standard error.
    pub fn start(self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(outcome) => panic!("the server did not start ({}):\n{}", outcome.status, outcome.stderr),
        }
    }

    /// Starts the server and waits until it listens. The error is how the server ended instead.
    pub fn try_start(self) -> Result<Server, Outcome> {
        let dir = TempDir::new();
        let (socket, pid_file) = (dir.join("sock"), dir.join("pid"));
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
        // Some programs keep the pid file open after they have written it.
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, dir.path(), events).expect("inotify on the test's directory");
        let mut command = Command::new(&self.program);
        let (before_socket, before_pid_file) = self.socket;
        command.args(before_socket).arg(&socket).arg(before_pid_file).arg(&pid_file).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.stderr.unwrap_or_else(Stdio::piped));
        // Temporary files that a killed server leaves are removed with the test's directory.
        command.env("TMPDIR", dir.path());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let started = Instant::now();
        let mut server = Server::new(command, dir, &self.program);
        match server.wait_for(&watch, &pid_file) {
            Ok(()) => {
                server.start_time = started.elapsed();
                Ok(server)
            }
            Err(outcome) => Err(outcome),
        }
    }
}

fn collect(stream: std::process::ChildStderr, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

fn text(stderr: &Mutex<String>) -> String {
    stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How a server ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

/// The children of a process, and theirs.
pub fn descendants(pid: u32) -> Vec<u32> {
    children(pid).into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

/// The processes that a process started. Empty if it has ended.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.collect::<String>().split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    pid: Pid,
    dir: TempDir,
    socket: PathBuf,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    start_time: Duration,
    over: bool,
}

impl Server {
    fn new(mut command: Command, dir: TempDir, program: &Path) -> Server {
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{} does not start: {error}; 'make' builds it, or RBDKIT names another", program.display())
        });
        let stderr = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|stream| collect(stream, Arc::clone(&stderr)));
        let pid = Pid::from_child(&child);
        let socket = dir.join("sock");
        Server { child, pid, dir, socket, stderr, reader, start_time: Duration::ZERO, over: false }
    }

    /// Waits for the pid file, which the server writes once it listens, or for the server's end.
    fn wait_for(&mut self, watch: &OwnedFd, pid_file: &Path) -> Result<(), Outcome> {
        let ended = pidfd_open(self.pid, PidfdFlags::empty()).expect("a handle of the child");
        while !std::fs::read_to_string(pid_file).is_ok_and(|text| text.ends_with('\n')) {
            let mut fds = [PollFd::new(watch, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&timeout)).expect("poll");
            assert!(ready > 0, "the server neither listens nor ends");
            if !fds[1].revents().is_empty() {
                return Err(self.finish());
            }
            let mut space = [MaybeUninit::uninit(); 1024];
            let _ = inotify::Reader::new(watch, &mut space).next();
        }
        Ok(())
    }

    /// Starts the program under test with these arguments after those for the socket.
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Server {
        Launch::new(arguments).start()
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its directory. A test may put more files there.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// The URI of its default export.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// The time from the start of the program to its pid file.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Opens a connection, negotiated with structured replies and `base:allocation`.
    pub fn client(&self) -> crate::Client {
        crate::Client::connect(&self.socket)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Waits until its standard error contains `needle`.
    pub fn wait_for_log(&self, needle: &str) {
        self.wait_until(needle, |server| server.stderr().contains(needle));
    }

    /// Waits until `condition` holds. This is for conditions that send no event, such as memory or
    /// counters in /proc. The failure's message has `what`.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Server) -> bool) {
        let held = wait::holds_before(Deadline::new(), || condition(self));
        assert!(held, "it never came to this: {what}\n{}", self.stderr());
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A number in `/proc/PID/status`; sizes there are in KiB.
    pub fn proc_status(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server's status");
        let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key} in\n{status}"));
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }

    /// Resident memory in bytes. Pages of the program file count as soon as they were touched.
    pub fn resident(&self) -> u64 {
        self.proc_status("VmRSS:") << 10
    }

    /// Processor time in nanoseconds that the threads alive now have used. `None` if the kernel
    /// does not tell.
    pub fn cpu(&self) -> Option<u64> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?;
        let of_thread = |thread: std::fs::DirEntry| {
            // The thread may have ended since.
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        let times: Vec<u64> = threads.flatten().filter_map(of_thread).collect();
        (!times.is_empty()).then(|| times.iter().sum())
    }

    /// The number of its open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("a signal");
    }

    /// Waits for the end of the server's process. Programs that it started may still run.
    pub fn wait_for_end(&self) {
        let ended = pidfd_open(self.pid, PidfdFlags::empty()).expect("a handle of the child");
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&timeout)).expect("poll");
        assert!(ready > 0, "the server does not end:\n{}", self.stderr());
    }

    /// Waits for the server's end.
    pub fn wait(mut self) -> Outcome {
        self.finish()
    }

    /// Sends SIGTERM and waits for the server's end.
    pub fn stop(mut self) -> Outcome {
        kill_process(self.pid, Signal::TERM).expect("SIGTERM");
        self.finish()
    }

    /// Sends SIGKILL and waits for the server's end.
    pub fn kill(mut self) -> Outcome {
        kill_process(self.pid, Signal::KILL).expect("SIGKILL");
        self.finish()
    }

    fn finish(&mut self) -> Outcome {
        self.wait_for_end();
        let status = self.child.wait().expect("wait");
        self.over = true;
        if let Some(reader) = self.reader.take() {
            wait::until("all processes of the server close its standard error", || reader.is_finished());
            reader.join().expect("the reader of stderr");
        }
        let outcome = Outcome { status, stderr: self.stderr() };
        assert_no_panic(&outcome.stderr);
        outcome
    }
}

/// Fails if the server panicked: the log then says "a thread panicked". A panic inside a filter is
/// a warning or an error of the log, with the filter's name, and allowed.
fn assert_no_panic(stderr: &str) {
    let logged = |line: &str| line.starts_with("rbdkit: warning: ") || line.starts_with("rbdkit: error: ");
    let panicked = |line: &str| line.contains("a thread panicked at") || line.contains("panicked at") && !logged(line);
    assert!(!stderr.lines().any(panicked), "the server panicked:\n{stderr}");
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if let Some(reader) = self.reader.take()
                && wait::holds_before(Deadline::new(), || reader.is_finished())
            {
                let _ = reader.join();
            }
        }
        if std::thread::panicking() {
            eprintln!("---- the server's stderr:\n{}----", self.stderr());
        } else {
            assert_no_panic(&self.stderr());
        }
    }
}

/// Reads `len` bytes of a file at `offset`.
pub fn read_at(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let file = std::fs::File::open(path).expect("a file of the test");
    file.read_exact_at(&mut bytes, offset).expect("bytes of the test's file");
    bytes
}
