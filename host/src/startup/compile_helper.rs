//! The helper process that opens and compiles the files of filters for a server that is confined.
//!
//! A confined server may neither open files nor start the compiler. With `--reload` it starts this
//! helper before it confines itself: the same program, as the same user, with the paths of the
//! filters' files on its command line. Over a socket the server can ask only for the number of a
//! file. The helper opens that file, reads it within the bounds of the start, and compiles it as at
//! the start: in a child that is confined and limited, or from the cache. It sends back the
//! component and its code in two files in memory, which are sealed: nobody can change them any
//! more.
//!
//! The server runs the code that comes over this socket. Only the helper has the other end, so the
//! code is always what this same program compiled.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rbdkit_launcher::packet;
use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{ConfigError, own_program};
use rbdkit_sandbox::{
    CompileLimits, Compiler, Host, MAX_CODE_BYTES, MAX_COMPONENT_BYTES, Options, Precompiled, read_component,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use sha2::{Digest as _, Sha256};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::cli;

/// The hidden argument. After it come seconds of processor time and bytes of memory for compiling,
/// and the paths of the files.
const ARGUMENT: &str = "--rbdkit-compile-for-reload";

/// The most files that are read and compiled at a time. The server asks for one at a time.
const MAX_REQUESTS: usize = 4;

/// The longest line that says why a file cannot be used, in bytes.
const MAX_LINE: usize = 1000;

/// How long the helper may take besides compiling: reading a file from a slow disk or a pipe.
const READ_TIMEOUT: Duration = Duration::from_secs(70);

/// The first byte of an answer.
const COMPILED: u8 = 0;
const UNCHANGED: u8 = 1;
const REFUSED: u8 = 2;

/// The seals of a file in memory that nobody can change any more.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// The server's side.
pub struct CompileHelper {
    control: OwnedFd,
    timeout: Duration,
}

/// What the helper answers.
pub enum Answer {
    /// The file is the one that is running.
    Unchanged,
    /// The file was compiled.
    Compiled(Precompiled),
}

impl CompileHelper {
    /// Starts the helper. It ends when the server has ended.
    ///
    /// # Errors
    /// The system cannot start a process.
    pub fn start(paths: &[PathBuf], limits: CompileLimits) -> io::Result<CompileHelper> {
        let (control, theirs) = packet::pair()?;
        let mut command = Command::new(own_program()?);
        command.arg0("rbdkit").arg(ARGUMENT);
        command.arg(limits.time.as_secs().max(1).to_string()).arg(limits.memory.to_string()).args(paths);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // Control-C must reach only the server.
        command.process_group(0);
        drop(command.spawn()?);
        let timeout = limits.time.saturating_mul(2).saturating_add(READ_TIMEOUT);
        Ok(CompileHelper { control, timeout })
    }

    /// Asks for the file of this number. `running` is the digest of the component that is running.
    ///
    /// # Errors
    /// One line, without the file's name: the file cannot be read or compiled, or the helper does
    /// not answer.
    pub async fn compile(&self, number: u32, running: &cli::Sha256) -> Result<Answer, ConfigError> {
        match tokio::time::timeout(self.timeout, self.ask(number, running)).await {
            Ok(answer) => answer.map_err(|error| ConfigError::new(error.to_string())),
            Err(_) => Err(ConfigError::new("the helper process that compiles it does not answer")),
        }
    }

    async fn ask(&self, number: u32, running: &cli::Sha256) -> io::Result<Answer> {
        let gone = |_| io::Error::other("the helper process that compiles it is gone");
        let (ours, theirs) = packet::pair()?;
        let mut request = number.to_be_bytes().to_vec();
        request.extend(running);
        packet::send(self.control.as_fd(), &request, &[theirs.as_fd()]).map_err(gone)?;
        drop(theirs);
        // It preserves packet boundaries, of which tokio knows nothing. So it only waits.
        let ours = std::os::unix::net::UnixStream::from(ours);
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let mut answer = [0; 1 + MAX_LINE];
        let (count, files) = loop {
            ours.readable().await?;
            match ours.try_io(Interest::READABLE, || packet::receive(ours.as_fd(), &mut answer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => break received?,
            }
        };
        let files: Result<[OwnedFd; 2], _> = files.try_into();
        match (&answer[..count], files) {
            ([COMPILED], Ok([component, code])) => {
                let component = unseal(component, MAX_COMPONENT_BYTES as u64)?;
                let code = unseal(code, MAX_CODE_BYTES)?;
                #[allow(unsafe_code, reason = "the sandbox cannot know where compiled code comes from")]
                // SAFETY: the code came over a socket whose other end only the helper has, which is
                // this same program, and which sends only what `Host::precompile` returned. The
                // file is sealed, so these are the bytes that the helper wrote.
                let precompiled = unsafe { Precompiled::new(component, code) };
                Ok(Answer::Compiled(precompiled))
            }
            ([UNCHANGED], _) => Ok(Answer::Unchanged),
            ([REFUSED, line @ ..], _) => Err(io::Error::other(String::from_utf8_lossy(line).into_owned())),
            _ => Err(gone(io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    }
}

/// Reads a file in memory that nobody can change.
fn unseal(file: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let length = file.metadata()?.len();
    if !fcntl_get_seals(&file)?.contains(SEALS) || length > limit {
        return Err(io::Error::other("the helper process sent a file that is not sealed or too large"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A file in memory that nobody can change.
fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The helper's side.
struct Work {
    paths: Vec<PathBuf>,
    limits: CompileLimits,
    /// Made at the first request. A server that never reloads needs no compiler.
    host: OnceLock<Arc<Host>>,
}

/// Runs the helper, if this process was started as one; the process ends with the returned status
/// then. The program calls this before anything else.
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (Some(seconds), Some(memory)) = (number(), number()) else { return Some(ExitCode::FAILURE) };
    let limits = CompileLimits { time: Duration::from_secs(seconds), memory };
    let work = Work { paths: args.map(PathBuf::from).collect(), limits, host: OnceLock::new() };
    Some(serve(&Arc::new(work)).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn serve(work: &Arc<Work>) -> io::Result<()> {
    // The child that compiles must not inherit the socket as its standard input.
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let requests = Arc::new(AtomicUsize::new(0));
    loop {
        let mut request = [0; 4 + 32];
        let (count, mut answer) = packet::receive(control.as_fd(), &mut request)?;
        if count == 0 {
            // The server has ended. A child that compiles is killed when this process ends.
            return Ok(());
        }
        let (Some((number, running)), Some(answer)) = (request[..count].split_first_chunk::<4>(), answer.pop()) else {
            continue;
        };
        if requests.load(Ordering::Relaxed) >= MAX_REQUESTS {
            refuse(answer.as_fd(), "other files are being compiled");
            continue;
        }
        requests.fetch_add(1, Ordering::Relaxed);
        let (number, running) = (u32::from_be_bytes(*number), running.to_vec());
        let (work, requests) = (Arc::clone(work), Arc::clone(&requests));
        std::thread::Builder::new().spawn(move || {
            work.answer(number, &running, answer.as_fd());
            requests.fetch_sub(1, Ordering::Relaxed);
        })?;
    }
}

impl Work {
    /// Answers a request. The server may have ended meanwhile.
    fn answer(&self, number: u32, running: &[u8], answer: BorrowedFd<'_>) {
        match self.compile(number, running) {
            Ok(None) => drop(packet::send(answer, &[UNCHANGED], &[])),
            Ok(Some([component, code])) => {
                drop(packet::send(answer, &[COMPILED], &[component.as_fd(), code.as_fd()]));
            }
            Err(why) => refuse(answer, &why.to_string()),
        }
    }

    /// The component and its code, or none if it is the one that is running.
    fn compile(&self, number: u32, running: &[u8]) -> Result<Option<[OwnedFd; 2]>, ConfigError> {
        let failed = |error: &dyn std::fmt::Display| ConfigError::new(error.to_string());
        let path = self.paths.get(number as usize).ok_or_else(|| failed(&"there is no such file"))?;
        let component = read_component(path).map_err(|error| failed(&error))?;
        if Sha256::digest(&component).as_slice() == running {
            return Ok(None);
        }
        let code = self.host()?.precompile(&component).map_err(|error| failed(&error))?;
        let send = |name: &str, bytes: &[u8]| sealed(name, bytes).map_err(|error| failed(&error));
        Ok(Some([send("component", &component)?, send("code", &code)?]))
    }

    fn host(&self) -> Result<&Arc<Host>, ConfigError> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let compiler = Compiler::Child(self.limits);
        let host = Host::new(Options { compiler, ..Options::default() })?;
        Ok(self.host.get_or_init(|| host))
    }
}

fn refuse(answer: BorrowedFd<'_>, why: &str) {
    let mut bytes = vec![REFUSED];
    bytes.extend(one_line_within(why, MAX_LINE - 8).into_bytes());
    bytes.truncate(1 + MAX_LINE);
    let _ = packet::send(answer, &bytes, &[]);
}
