//! Going into the background.
//!
//! The process forks first, while it has a single thread. The child does all the work of starting; the parent waits for one byte
//! from it, which means "ready for clients", or for its end. So the caller's shell goes on when clients can connect, and a mistake in the
//! configuration still reaches it as an exit status: the child's.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Pid, WaitOptions};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::process::{self, Side};

/// What the child still owes the parent: the word that it is ready.
pub struct Word(io::PipeWriter);

/// How a process goes on after [`split`].
pub enum Split {
    /// It starts the server, and owes the word.
    Serve(Word),
    /// It is the one that the user called, and ends now.
    Exit(ExitCode),
}

/// Forks, and in the parent waits for the child.
///
/// # Errors
/// If the system has no process or pipe to give.
pub fn split() -> io::Result<Split> {
    let (mut reader, writer) = io::pipe()?;
    match process::fork()? {
        Side::Child => Ok(Split::Serve(Word(writer))),
        Side::Parent(child) => {
            drop(writer);
            // Whatever goes wrong with the pipe shows in how the child ends.
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
    /// Leaves the terminal, the working directory and the standard streams, and says that the server is ready. Standard error stays if
    /// debugging messages go there.
    ///
    /// # Errors
    /// If the parent is gone: it was killed, and nobody expects this server any more.
    pub fn give(mut self, keep_stderr: bool) -> io::Result<()> {
        // Fails only for a process that leads a session already.
        let _ = rustix::process::setsid();
        std::env::set_current_dir("/")?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        if !keep_stderr {
            dup2_stderr(&null)?;
        }
        self.0.write_all(&[1])
    }
}
