//! Runs one program, and moves its input, output and error output at the same time.
//!
//! One poll loop serves the three pipes and never blocks. So a program may print before it has read
//! its input, may not read it at all, or may fill standard error first.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use rbdkit_plugin_api::StopScope;

use crate::stop::Stop;

/// The most text that a method may print, in bytes. The longest useful answer is a list of 2^20
/// extents of some 40 bytes each.
const MAX_TEXT: usize = 64 << 20;

/// How much of standard error is kept, in bytes. The errno and the message are in the first line.
const MAX_ERRORS: usize = 64 << 10;

/// How many bytes more than requested are read before the pipe is closed, so that the message can
/// say how many there were.
const MAX_EXCESS: u64 = 64 << 10;

/// Where standard output goes.
pub(crate) enum Output<'a> {
    /// It is discarded.
    Ignored,
    /// Text, up to [`MAX_TEXT`].
    Text(Vec<u8>),
    /// It must fill exactly these bytes. `received` counts the bytes that came, which may be fewer
    /// or more.
    Exact { bytes: &'a mut [u8], received: u64 },
}

/// How the program ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The beginning of standard error.
    pub(crate) errors: Vec<u8>,
    /// It printed too much, and the rest was not read.
    pub(crate) too_much: bool,
}

/// A child that is killed and reaped if this value is dropped early.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // After an ordinary end both do nothing, because the child was reaped already. After a stop
        // the child was killed with its process group.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// When a program ends early: when the server stops.
#[derive(Clone, Copy)]
pub(crate) struct Leash<'a> {
    pub(crate) stop: &'a Stop,
    pub(crate) ends_with: StopScope,
}

/// Runs a program to its end.
///
/// # Errors
/// The program cannot be started, or a pipe failed. A program that fails is not an error here.
/// `Interrupted`: the server stops.
pub(crate) fn run(command: &mut Command, input: &[u8], output: &mut Output<'_>, leash: Leash<'_>) -> io::Result<Ended> {
    leash.stop.prepare(command);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn()?);
    let registered = leash.stop.register(&child.0, leash.ends_with);
    if leash.stop.refuses(leash.ends_with) {
        // The server has stopped while the program started.
        return Err(ErrorKind::Interrupted.into());
    }
    let mut pipes = Pipes {
        stdin: child.0.stdin.take(),
        stdout: child.0.stdout.take(),
        stderr: child.0.stderr.take(),
        input,
        output,
        errors: Vec::new(),
        too_much: false,
        stop: leash.stop.event(leash.ends_with),
    };
    pipes.set_nonblocking()?;
    while pipes.stdout.is_some() || pipes.stderr.is_some() {
        pipes.serve()?;
    }
    // A program that has closed its output but still reads must see the end of its input.
    pipes.stdin = None;
    let Pipes { errors, too_much, stop, .. } = pipes;
    // A program may close its pipes long before it ends.
    let pidfd = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty())?;
    let mut ended = vec![PollFd::new(&pidfd, PollFlags::IN)];
    while ended[0].revents().is_empty() {
        wait_for(&mut ended, stop)?;
    }
    drop(registered);
    Ok(Ended { status: child.0.wait()?, errors, too_much })
}

struct Pipes<'a, 'b, 'c> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// The input that is still to be written.
    input: &'a [u8],
    output: &'a mut Output<'b>,
    errors: Vec<u8>,
    too_much: bool,
    /// Readable when the program is to end.
    stop: BorrowedFd<'c>,
}

impl Pipes<'_, '_, '_> {
    fn set_nonblocking(&self) -> io::Result<()> {
        let fds = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in fds.into_iter().flatten() {
            ioctl_fionbio(fd, true)?;
        }
        Ok(())
    }

    /// Waits until a pipe is ready, and serves it.
    fn serve(&mut self) -> io::Result<()> {
        let [write, read, read_errors] = self.wait()?;
        if write {
            self.write_input();
        }
        if read && !self.read_output()? {
            self.stdout = None;
        }
        if read_errors && !self.read_errors()? {
            self.stderr = None;
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<[bool; 3]> {
        let wanted: [Option<(BorrowedFd<'_>, PollFlags)>; 3] = [
            self.stdin.as_ref().map(|fd| (fd.as_fd(), PollFlags::OUT)),
            self.stdout.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            self.stderr.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
        ];
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        wait_for(&mut fds, self.stop)?;
        // Any event counts: the read or write that follows reports a hang-up or an error.
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(wanted.map(|fd| fd.is_some() && happened.next().unwrap_or(false)))
    }

    fn write_input(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(self.input) {
            Ok(written) => self.input = &self.input[written..],
            Err(error) if would_wait(&error) => return,
            // The program stopped reading. That is allowed: its exit status says whether it
            // succeeded.
            Err(error) => {
                tracing::debug!("a script did not read all of its input: {error}");
                self.input = &[];
            }
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Returns false at the end.
    fn read_output(&mut self) -> io::Result<bool> {
        let Some(stdout) = &mut self.stdout else { return Ok(false) };
        let mut scratch = [0; 16 << 10];
        match &mut *self.output {
            Output::Ignored => Ok(read_some(stdout, &mut scratch)? != Some(0)),
            Output::Text(text) => {
                let Some(n) = read_some(stdout, &mut scratch)? else { return Ok(true) };
                self.too_much = text.len() + n > MAX_TEXT;
                if !self.too_much {
                    text.extend_from_slice(&scratch[..n]);
                }
                Ok(n > 0 && !self.too_much)
            }
            Output::Exact { bytes, received } => {
                let place = match usize::try_from(*received).ok().filter(|at| *at < bytes.len()) {
                    Some(at) => &mut bytes[at..],
                    None => &mut scratch[..],
                };
                let Some(n) = read_some(stdout, place)? else { return Ok(true) };
                *received += n as u64;
                self.too_much = *received > bytes.len() as u64 + MAX_EXCESS;
                Ok(n > 0 && !self.too_much)
            }
        }
    }

    /// Returns false at the end.
    fn read_errors(&mut self) -> io::Result<bool> {
        let Some(stderr) = &mut self.stderr else { return Ok(false) };
        let mut scratch = [0; 4096];
        let Some(n) = read_some(stderr, &mut scratch)? else { return Ok(true) };
        let kept = n.min(MAX_ERRORS - self.errors.len());
        self.errors.extend_from_slice(&scratch[..kept]);
        Ok(n > 0)
    }
}

/// Waits until something happens on one of these descriptors.
///
/// # Errors
/// `Interrupted`: the server stops.
fn wait_for<'a>(fds: &mut Vec<PollFd<'a>>, stop: BorrowedFd<'a>) -> io::Result<()> {
    fds.push(PollFd::from_borrowed_fd(stop, PollFlags::IN));
    match poll(fds, None) {
        Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
        Err(error) => return Err(error.into()),
    }
    match fds.pop() {
        Some(stop) if !stop.revents().is_empty() => Err(ErrorKind::Interrupted.into()),
        _ => Ok(()),
    }
}

/// Reads bytes that are available. Returns 0 at the end, and none if there are no bytes yet.
fn read_some(pipe: &mut impl Read, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match pipe.read(bytes) {
        Ok(n) => Ok(Some(n)),
        Err(error) if would_wait(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
