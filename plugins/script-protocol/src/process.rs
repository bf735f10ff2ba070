//! Runs one program, and moves its input, output and error output at the same time.
//!
//! One poll loop serves the three pipes, the end of the program and the caller that gives up. It
//! never blocks elsewhere. So a program may print before it has read its input, may not read it at
//! all, or may fill standard error first. A program that hangs is killed when its caller gives up.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Abandoned, StopScope};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::running::{Entered, Running};

/// The most text that a method may print, in bytes. The longest useful answer is a list of 2^20
/// extents of some 40 bytes each.
const MAX_TEXT: usize = 64 << 20;

/// How much of standard error is kept, in bytes. The errno and the message are in the first line.
const MAX_ERRORS: usize = 64 << 10;

/// How many bytes more than requested are read before the pipe is closed, so that the message can
/// say how many there were.
const MAX_EXCESS: u64 = 64 << 10;

/// How long standard output may stay open after the program has ended, because another program has
/// it. A shell's process substitution ends a moment after the shell.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// The same for output that nobody needs: a program that was started in the background.
const SPARE_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where standard output goes.
pub(crate) enum Output<'a> {
    /// It is discarded.
    Ignored,
    /// Text, up to [`MAX_TEXT`].
    Text(Vec<u8>),
    /// It must fill exactly these bytes. `received` counts the bytes that came, which may be fewer
    /// or more.
    Exact { bytes: &'a mut [u8], received: u64 },
    /// It must be exactly as many bytes as `expected`, which are counted and discarded.
    Counted { expected: u64, received: u64 },
}

/// Why a program was not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It printed too much. It was killed.
    TooMuch,
    /// The caller gave up, or the server stops. It was killed.
    Abandoned,
    /// It has ended, but another program has its standard output open.
    OutputStaysOpen,
}

/// How the program ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The beginning of standard error.
    pub(crate) errors: Vec<u8>,
    /// None: the program ended by itself, and all its output is there.
    pub(crate) problem: Option<Problem>,
}

/// Under which conditions a program runs.
#[derive(Clone, Copy)]
pub(crate) struct Conditions<'a> {
    /// When the caller gives up. None: the server starts or ends. Then the program belongs to the
    /// server's process group, so that Control-C ends both. Otherwise it leads a group of its own.
    pub(crate) abandoned: Option<&'a Abandoned>,
    /// Where the program is among those that a stop of the server ends.
    pub(crate) running: &'a Running,
    /// The stop that ends it.
    pub(crate) scope: StopScope,
}

/// A child that is killed and reaped if this value is dropped early.
struct Reaped<'a> {
    child: Child,
    /// None once it is being reaped.
    entered: Option<Entered<'a>>,
}

impl Reaped<'_> {
    fn kill(&self) {
        if let Some(entered) = &self.entered {
            entered.program.kill();
        }
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        // From now on nobody else sends it a signal.
        self.entered = None;
        self.child.wait()
    }
}

impl Drop for Reaped<'_> {
    fn drop(&mut self) {
        if self.entered.is_some() {
            self.kill();
            let _ = self.wait();
        }
    }
}

/// Runs a program to its end, or until the caller gives up or the server stops.
///
/// # Errors
/// The program cannot be started, or a pipe failed. A program that fails is not an error here.
pub(crate) fn run(
    command: &mut Command,
    input: &[u8],
    output: &mut Output<'_>,
    conditions: Conditions<'_>,
) -> io::Result<Ended> {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let leads_group = conditions.abandoned.is_some();
    if leads_group {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let mut pipes = Pipes {
        stdin: child.stdin.take(),
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
        // Without one the end of the program is not seen before its pipes are closed.
        process: pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok(),
        conditions,
        input,
        output,
        errors: Vec::new(),
        ended: None,
    };
    let entered = Some(conditions.running.enter(&child, leads_group, conditions.scope));
    let mut child = Reaped { child, entered };
    pipes.set_nonblocking()?;
    let problem = pipes.serve()?;
    if matches!(problem, Some(Problem::TooMuch | Problem::Abandoned)) {
        child.kill();
    }
    // A program that has closed its output but still reads must see the end of its input.
    pipes.stdin = None;
    let Pipes { errors, .. } = pipes;
    Ok(Ended { status: child.wait()?, errors, problem })
}

struct Pipes<'a, 'b> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// Becomes readable when the program ends. None once it has ended.
    process: Option<OwnedFd>,
    conditions: Conditions<'a>,
    /// The input that is still to be written.
    input: &'a [u8],
    output: &'a mut Output<'b>,
    errors: Vec<u8>,
    /// When the program ended.
    ended: Option<Instant>,
}

/// What a wait has found.
struct Events {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    ended: bool,
    abandoned: bool,
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

    /// Serves the pipes until they are closed and the program has ended.
    fn serve(&mut self) -> io::Result<Option<Problem>> {
        loop {
            if self.stdout.is_none() && self.stderr.is_none() {
                self.stdin = None;
                if self.process.is_none() {
                    return Ok(None);
                }
            }
            let left = self.time_left();
            if left == Some(Duration::ZERO) {
                return Ok(self.needs_output().then_some(Problem::OutputStaysOpen));
            }
            let events = self.wait(left)?;
            let is_stopped = events.ended && self.conditions.running.is_stopped(self.conditions.scope);
            if events.abandoned || is_stopped {
                return Ok(Some(Problem::Abandoned));
            }
            if events.stdin {
                self.write_input();
            }
            if events.stdout && !self.read_output()? {
                self.stdout = None;
            }
            if events.stderr && !self.read_errors()? {
                self.stderr = None;
            }
            if self.is_too_much() {
                return Ok(Some(Problem::TooMuch));
            }
            if events.ended {
                self.process = None;
                self.ended = Some(Instant::now());
            }
        }
    }

    /// Whether more of standard output may come that the caller needs.
    fn needs_output(&self) -> bool {
        self.stdout.is_some() && !matches!(self.output, Output::Ignored)
    }

    /// How long to wait for the pipes of a program that has ended. None: it has not ended.
    fn time_left(&self) -> Option<Duration> {
        let allowed = if self.needs_output() { OUTPUT_TIMEOUT } else { SPARE_OUTPUT_TIMEOUT };
        self.ended.map(|at| allowed.saturating_sub(at.elapsed()))
    }

    fn is_too_much(&self) -> bool {
        match &*self.output {
            Output::Ignored => false,
            Output::Text(text) => text.len() > MAX_TEXT,
            Output::Exact { bytes, received } => *received > bytes.len() as u64 + MAX_EXCESS,
            Output::Counted { expected, received } => *received > expected + MAX_EXCESS,
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<Events> {
        let wanted: [Option<(BorrowedFd<'_>, PollFlags)>; 5] = [
            self.stdin.as_ref().map(|fd| (fd.as_fd(), PollFlags::OUT)),
            self.stdout.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            self.stderr.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            self.process.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            self.conditions.abandoned.map(|abandoned| (abandoned.as_fd(), PollFlags::IN)),
        ];
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = timeout.map(|left| Timespec::try_from(left).unwrap_or_default());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        // Any event counts: the read or write that follows reports a hang-up or an error.
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let [stdin, stdout, stderr, ended, abandoned] =
            wanted.map(|fd| fd.is_some() && happened.next().unwrap_or(false));
        Ok(Events { stdin, stdout, stderr, ended, abandoned })
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
                text.extend_from_slice(&scratch[..n]);
                Ok(n > 0)
            }
            Output::Exact { bytes, received } => {
                let place = match usize::try_from(*received).ok().filter(|at| *at < bytes.len()) {
                    Some(at) => &mut bytes[at..],
                    None => &mut scratch[..],
                };
                let Some(n) = read_some(stdout, place)? else { return Ok(true) };
                *received += n as u64;
                Ok(n > 0)
            }
            Output::Counted { received, .. } => {
                let Some(n) = read_some(stdout, &mut scratch)? else { return Ok(true) };
                *received += n as u64;
                Ok(n > 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, output: &mut Output<'_>) -> Ended {
        let (running, mut command) = (Running::default(), Command::new("sh"));
        let (abandoned, _waiting) = Abandoned::new().unwrap();
        let conditions = Conditions { abandoned: Some(&abandoned), running: &running, scope: StopScope::Reads };
        run(command.args(["-c", script]), &[], output, conditions).unwrap()
    }

    #[test]
    fn output_that_another_program_keeps_open_may_be_cut_and_is_an_error() {
        let mut output = Output::Text(Vec::new());
        let ended = sh("echo a; sleep 600 & echo $!", &mut output);
        assert_eq!(ended.problem, Some(Problem::OutputStaysOpen));
        let Output::Text(text) = output else { panic!("another output") };
        let pid = String::from_utf8(text).unwrap().lines().nth(1).unwrap().to_owned();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
    }

    #[test]
    fn the_output_of_a_program_that_ends_later_counts() {
        let mut output = Output::Text(Vec::new());
        let ended = sh("(sleep 0.01; echo a) & exit 0", &mut output);
        let Output::Text(text) = output else { panic!("another output") };
        assert_eq!((ended.problem, &text[..]), (None, &b"a\n"[..]));
    }
}
