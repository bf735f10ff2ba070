//! Runs one program: input to it, output and error output from it, all at once.
//!
//! The three pipes are served from one poll loop and never block, so a program may print before it has read its input, or not read
//! it at all, or fill standard error first.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio};

/// The most text that a method may print: the longest useful answer is a list of 2^20 extents with 40 bytes or so each.
const MAX_TEXT: usize = 64 << 20;

/// The most of standard error that is kept. The errno and the message are in the first line.
const MAX_ERRORS: usize = 64 << 10;

/// How much more than was asked for is read, to tell in the message how much too much it was, before the pipe is closed.
const MAX_EXCESS: u64 = 64 << 10;

/// Where standard output goes.
pub(crate) enum Output<'a> {
    /// It means nothing.
    Ignored,
    /// Text, up to [`MAX_TEXT`].
    Text(Vec<u8>),
    /// Exactly these bytes; `received` counts what came, which may be less or more.
    Exact { bytes: &'a mut [u8], received: u64 },
}

/// How the program ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The beginning of standard error.
    pub(crate) errors: Vec<u8>,
    /// It printed more than it may; the rest was not waited for.
    pub(crate) too_much: bool,
}

/// A child that is not left behind, whatever happens here.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // After an ordinary end both do nothing: the child is waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program and sees it through to its end.
///
/// # Errors
/// It could not be started, or the pipes failed. A program that fails is no error here.
pub(crate) fn run(command: &mut Command, input: &[u8], output: &mut Output<'_>) -> io::Result<Ended> {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn()?);
    let mut pipes = Pipes {
        stdin: child.0.stdin.take(),
        stdout: child.0.stdout.take(),
        stderr: child.0.stderr.take(),
        input,
        output,
        errors: Vec::new(),
        too_much: false,
    };
    pipes.set_nonblocking()?;
    while pipes.stdout.is_some() || pipes.stderr.is_some() {
        pipes.turn()?;
    }
    // A program that closed its output and goes on reading has to see an end of it.
    pipes.stdin = None;
    let Pipes { errors, too_much, .. } = pipes;
    Ok(Ended { status: child.0.wait()?, errors, too_much })
}

struct Pipes<'a, 'b> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// What is still to be written.
    input: &'a [u8],
    output: &'a mut Output<'b>,
    errors: Vec<u8>,
    too_much: bool,
}

impl Pipes<'_, '_> {
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

    /// Waits until a pipe has something to do, and does it.
    fn turn(&mut self) -> io::Result<()> {
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
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        // Anything that happened counts: a hang-up or an error shows itself in the read or write that follows.
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(wanted.map(|fd| fd.is_some() && happened.next().unwrap_or(false)))
    }

    fn write_input(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(self.input) {
            Ok(written) => self.input = &self.input[written..],
            Err(error) if would_wait(&error) => return,
            // The program does not read on. That is its own affair: its exit status says whether it did its work.
            Err(error) => {
                tracing::debug!("a script did not read all of its input: {error}");
                self.input = &[];
            }
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// False at the end.
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

    /// False at the end.
    fn read_errors(&mut self) -> io::Result<bool> {
        let Some(stderr) = &mut self.stderr else { return Ok(false) };
        let mut scratch = [0; 4096];
        let Some(n) = read_some(stderr, &mut scratch)? else { return Ok(true) };
        let kept = n.min(MAX_ERRORS - self.errors.len());
        self.errors.extend_from_slice(&scratch[..kept]);
        Ok(n > 0)
    }
}

/// The bytes that are there, 0 at the end, none if there is nothing yet.
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
