//! Opens files for a server that is confined and may open only what it named when it started.
//!
//! A plugin may serve files that somebody names later, for example by a symbolic link. It creates
//! an [`Opener`] with the function that opens such a file by its name in a directory. Before the
//! server confines itself, the opener moves into a helper process ([`Opener::move_out`]), which
//! keeps the rights of the user. From then on the server can ask the helper only for names, and the
//! function in the helper decides which of them may be opened. An attacker who controls the server
//! gets the files that the function allows, and no others.
//!
//! Without a helper, in tests and in an unconfined server, the same function opens the file in this
//! process.
//!
//! The helper is the same executable. The first packet over its socket brings the directory. Each
//! request brings the end of another socket, over which the answer goes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::{helper, packet};

/// The argument before the opener's name that makes the executable a helper.
const ARGUMENT: &str = "--rbdkit-open";

/// The most files that are being opened at a time. A file on a server that does not answer keeps a
/// thread of the helper.
const MAX_OPENING: usize = 64;

/// The longest name of a file, in bytes: the kernel's limit on a component of a path.
const MAX_NAME: usize = 255;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFor {
    /// Reading.
    Reading,
    /// Reading and writing.
    Writing,
}

/// Opens the file that a name in a directory stands for. It runs in the server or in the helper.
/// The name may come from an attacker.
pub type Open = fn(directory: BorrowedFd<'_>, name: &OsStr, purpose: OpenFor) -> rustix::io::Result<OwnedFd>;

/// See the module.
pub struct Opener {
    name: &'static str,
    open: Open,
    /// The socket to the helper, once there is one.
    helper: OnceLock<OwnedFd>,
}

impl Opener {
    /// Opens files in this process at first. `name` is the name of `open` in the call of
    /// [`serve_opener_if_asked`].
    pub fn new(name: &'static str, open: Open) -> Opener {
        Opener { name, open, helper: OnceLock::new() }
    }

    /// Starts the helper process for this directory, if the program can be its own helper and there
    /// is none yet.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub fn move_out(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        if self.helper.get().is_some() || !helper::is_available() {
            return Ok(());
        }
        let (ours, theirs) = packet::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("rbdkit").arg(ARGUMENT).arg(self.name);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // Control-C must reach only the server. The helper ends when its socket is closed.
        command.process_group(0);
        drop(command.spawn()?);
        drop(command);
        packet::send(ours.as_fd(), &[0], &[directory])?;
        let _ = self.helper.set(ours);
        Ok(())
    }

    /// Opens the file of this name. Blocks as long as opening takes.
    ///
    /// # Errors
    /// Those of [`Open`]; EIO if the helper has ended, EBUSY if it is opening too many files.
    pub fn open(&self, directory: BorrowedFd<'_>, name: &OsStr, purpose: OpenFor) -> rustix::io::Result<OwnedFd> {
        match self.helper.get() {
            Some(control) => ask(control.as_fd(), name, purpose).unwrap_or(Err(rustix::io::Errno::IO)),
            None => (self.open)(directory, name, purpose),
        }
    }
}

/// Asks the helper. The outer error means that it has ended.
fn ask(control: BorrowedFd<'_>, name: &OsStr, purpose: OpenFor) -> io::Result<rustix::io::Result<OwnedFd>> {
    if name.len() > MAX_NAME {
        return Ok(Err(rustix::io::Errno::NAMETOOLONG));
    }
    let (ours, theirs) = packet::pair()?;
    let mut request = vec![u8::from(purpose == OpenFor::Writing)];
    request.extend(name.as_bytes());
    packet::send(control, &request, &[theirs.as_fd()])?;
    drop(theirs);
    let mut answer = [0; 4];
    match packet::receive(ours.as_fd(), &mut answer)? {
        (4, mut files) => Ok(match (i32::from_be_bytes(answer), files.pop()) {
            (0, Some(file)) => Ok(file),
            (code, _) => Err(rustix::io::Errno::from_raw_os_error(code)),
        }),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Runs the helper, if this process was started as one; the process ends with the returned status
/// then. A program calls this before anything else. `opens` are the functions of its openers, by
/// name.
pub fn serve_opener_if_asked(opens: &[(&str, Open)]) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|word| word != ARGUMENT) {
        return None;
    }
    let name = args.next().unwrap_or_default();
    let open = opens.iter().find(|(known, _)| name == *known).map(|(_, open)| *open);
    match open.map(serve) {
        Some(Ok(())) => Some(ExitCode::SUCCESS),
        _ => Some(ExitCode::FAILURE),
    }
}

fn serve(open: Open) -> io::Result<()> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let (_, mut directory) = packet::receive(control.as_fd(), &mut [0])?;
    let directory = Arc::new(directory.pop().ok_or(io::ErrorKind::UnexpectedEof)?);
    let opening = Arc::new(AtomicUsize::new(0));
    loop {
        let mut request = [0; 1 + MAX_NAME];
        let (count, mut answer) = packet::receive(control.as_fd(), &mut request)?;
        if count == 0 {
            // The server has ended. Threads that still wait for a file end with the process.
            return Ok(());
        }
        let ([purpose, name @ ..], Some(answer)) = (&request[..count], answer.pop()) else { continue };
        let purpose = if *purpose == 0 { OpenFor::Reading } else { OpenFor::Writing };
        if opening.load(Ordering::Relaxed) >= MAX_OPENING {
            tell(&answer, Err(rustix::io::Errno::BUSY));
            continue;
        }
        opening.fetch_add(1, Ordering::Relaxed);
        let (name, directory, opening) =
            (OsString::from_vec(name.to_vec()), Arc::clone(&directory), Arc::clone(&opening));
        std::thread::Builder::new().spawn(move || {
            tell(&answer, open(directory.as_fd(), &name, purpose));
            opening.fetch_sub(1, Ordering::Relaxed);
        })?;
    }
}

/// Answers a request. An error means that the server has ended.
fn tell(answer: &OwnedFd, opened: rustix::io::Result<OwnedFd>) {
    let code = opened.as_ref().map_or_else(|error| error.raw_os_error(), |_| 0);
    let files: Vec<BorrowedFd<'_>> = opened.iter().map(AsFd::as_fd).collect();
    let _ = packet::send(answer.as_fd(), &code.to_be_bytes(), &files);
}
