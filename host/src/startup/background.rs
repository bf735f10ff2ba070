//! Going into the background.
//!
//! The process forks first, while it has a single thread. The child does all the work of starting.
//! The parent waits for one byte from the child, which means "ready for clients", or for the
//! child's end, and exits with the child's status. So the caller's shell continues when clients can
//! connect, and gets the status of a failed start.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Pid, WaitOptions};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::process::{self, Side};

/// The child's end of the pipe, on which it tells the parent that it is ready.
pub struct Word(io::PipeWriter);

/// What happens to standard error in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardError {
    /// It stays, because debugging messages go there.
    Stays,
    /// It becomes /dev/null.
    Closes,
}

/// What a process does after [`split`].
pub enum Split {
    /// This is the child: it starts the server, and tells the parent when it is ready.
    Serve(Word),
    /// This is the process that the user started: it exits.
    Exit(ExitCode),
}

/// Forks, and in the parent waits for the child.
///
/// # Errors
/// The system cannot create a process or a pipe.
pub fn split() -> io::Result<Split> {
    let (mut reader, writer) = io::pipe()?;
    match process::fork()? {
        Side::Child => Ok(Split::Serve(Word(writer))),
        Side::Parent(child) => {
            drop(writer);
            // If the pipe fails, the child's status says why.
            let ready = reader.read_exact(&mut [0]).is_ok();
            Ok(Split::Exit(if ready { ExitCode::SUCCESS } else { status_of(child) }))
        }
    }
}

fn status_of(child: Pid) -> ExitCode {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
            (None, Some(signal)) => {
                eprintln!("rbdkit: error: the server was killed while it started: {}", process::signal_name(signal));
                ExitCode::FAILURE
            }
            (None, None) => ExitCode::FAILURE,
        },
        _ => ExitCode::FAILURE,
    }
}

impl Word {
    /// Leaves the terminal, the working directory and the standard streams, and tells the parent
    /// that the server is ready.
    ///
    /// # Errors
    /// The parent was killed and waits no more.
    pub fn give(mut self, standard_error: StandardError) -> io::Result<()> {
        // Fails only if the process leads a session already.
        let _ = rustix::process::setsid();
        std::env::set_current_dir("/")?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        if standard_error == StandardError::Closes {
            dup2_stderr(&null)?;
        }
        self.0.write_all(&[1])
    }
}
