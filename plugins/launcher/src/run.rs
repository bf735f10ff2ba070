//! Runs a program to its end, within bounds on its time and its output.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rbdkit_plugin_api::Abandoned;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};

use crate::program::Program;

/// How much of standard error is kept, in bytes: its first lines say what is wrong.
const MAX_ERRORS: usize = 4 << 10;

/// How long to wait for the output of a program that has ended, if another program keeps it open.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a program may take.
#[derive(Clone, Copy, Debug)]
pub struct RunLimits {
    /// The most bytes on standard output.
    pub output: usize,
    /// The longest time until its end.
    pub time: Duration,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub output: Vec<u8>,
    /// The beginning of what it printed on standard error.
    pub errors: Vec<u8>,
}

/// Why a program did not run to its end. It was ended then.
#[derive(Debug)]
pub enum RunError {
    /// It cannot be started, or its output cannot be read.
    Io(io::Error),
    /// It printed more than the limit.
    TooMuch,
    /// It ran longer than the limit.
    TooLong(Duration),
    /// Nobody waits for it any more.
    Abandoned,
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> RunError {
        RunError::Io(error)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Io(error) => write!(f, "{error}"),
            RunError::TooMuch => f.write_str("the script prints too much"),
            RunError::TooLong(limit) => write!(f, "the script does not end within {} s", limit.as_secs()),
            RunError::Abandoned => f.write_str("the script was ended: nobody waits for it any more"),
        }
    }
}

/// The pipes from a program.
struct Pipes {
    output: Option<File>,
    errors: Option<File>,
    said: Said,
    limit: usize,
}

/// What has been read.
#[derive(Default)]
struct Said {
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Pipes {
    /// `ends` are standard output and standard error.
    fn new(ends: Vec<OwnedFd>, limit: usize) -> io::Result<Pipes> {
        for end in &ends {
            ioctl_fionbio(end, true)?;
        }
        let mut ends = ends.into_iter().map(File::from);
        Ok(Pipes { output: ends.next(), errors: ends.next(), said: Said::default(), limit })
    }

    fn are_open(&self) -> bool {
        self.output.is_some() || self.errors.is_some()
    }

    /// Reads what is there. Does not wait.
    fn read(&mut self) -> Result<(), RunError> {
        let Pipes { output, errors, said, limit } = self;
        // One byte more than the limit shows that there is too much.
        if read_some(output, &mut said.output, *limit + 1)? && said.output.len() > *limit {
            return Err(RunError::TooMuch);
        }
        read_some(errors, &mut said.errors, MAX_ERRORS)?;
        Ok(())
    }
}

/// Reads once from a pipe, and closes it at its end. Bytes beyond `limit` are dropped. Returns
/// whether there was something.
fn read_some(pipe: &mut Option<File>, into: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let Some(file) = pipe else { return Ok(false) };
    let mut bytes = [0; 4096];
    match file.read(&mut bytes) {
        Ok(0) => {
            *pipe = None;
            Ok(false)
        }
        Ok(count) => {
            let room = limit.saturating_sub(into.len());
            into.extend_from_slice(&bytes[..count.min(room)]);
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What happens to a program that has to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterError {
    /// It is asked to end, and nobody waits for that.
    Leave,
    /// The run returns when it has ended.
    WaitForEnd,
}

/// Waits for the end of a program. An error ends it.
pub(crate) fn to_the_end(
    ends: Vec<OwnedFd>,
    program: Program,
    limits: RunLimits,
    abandoned: &Abandoned,
    after: AfterError,
) -> Result<Finished, RunError> {
    match watch(ends, &program, limits, abandoned) {
        Ok(Said { output, errors }) => Ok(Finished { status: program.wait()?, output, errors }),
        Err(error) => {
            if after == AfterError::WaitForEnd {
                let _ = program.end();
            }
            Err(error)
        }
    }
}

/// Reads what a program says until it has ended.
fn watch(ends: Vec<OwnedFd>, program: &Program, limits: RunLimits, abandoned: &Abandoned) -> Result<Said, RunError> {
    let mut pipes = Pipes::new(ends, limits.output)?;
    let started = Instant::now();
    let mut ended = false;
    let mut deadline = started + limits.time;
    while !ended || pipes.are_open() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            match ended {
                // Another program has its output open, and may print for ever.
                true => break,
                false => return Err(RunError::TooLong(limits.time)),
            }
        }
        let event = program.ended()?;
        let mut fds = vec![PollFd::new(abandoned, PollFlags::IN)];
        fds.extend([&pipes.output, &pipes.errors].into_iter().flatten().map(|end| PollFd::new(end, PollFlags::IN)));
        if !ended {
            fds.push(PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&Timespec::try_from(left).unwrap_or_default())) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if !fds[0].revents().is_empty() {
            return Err(RunError::Abandoned);
        }
        if !ended && fds.last().is_some_and(|event| !event.revents().is_empty()) {
            ended = true;
            deadline = Instant::now() + OUTPUT_TIMEOUT;
        }
        drop(fds);
        pipes.read()?;
    }
    Ok(pipes.said)
}
