//! Starts programs for a server that is confined and may not start any itself.
//!
//! A plugin may need programs while it serves: `ssh` for each client, or a script when a token has
//! expired. It creates a [`Launcher`] with the function that starts them and the words of the
//! command. Before the server confines itself, the launcher moves into a helper process
//! ([`Launcher::move_out`]), which keeps the rights of the user. From then on the server can ask
//! the helper only to start that program with those words and a number. An attacker who controls
//! the server can start again what the operator named, and nothing else.
//!
//! Without a helper, in tests and in an unconfined server, the same function starts the program in
//! this process.
//!
//! | module | subject |
//! |---|---|
//! | [`start`] | the function that a plugin provides |
//! | [`helper`] | the process that starts programs |
//! | [`opener`] | opens files instead of starting programs, in a helper of its own |
//! | [`program`] | a running program, which ends with its value |
//! | [`run`] | runs a program to its end, within bounds on its time and its output |
//! | [`shell`] | runs shell commands that the operator gave inline |
//! | [`variables`] | what an order may add to a program's environment |
//! | [`packet`] | the protocol between the two processes: bytes and descriptors over a socket |
#![forbid(unsafe_code)]

mod helper;
mod opener;
pub mod packet;
mod program;
mod run;
mod shell;
mod start;
mod variables;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rbdkit_plugin_api::Abandoned;

pub use helper::serve_if_asked;
pub use opener::{Open, OpenFor, Opener, serve_opener_if_asked};
pub use program::Program;
pub use run::{Finished, RunError, RunLimits};
pub use shell::{SHELL, shell, start_shell};
pub use start::{Order, Start, Started};
pub use variables::{MAX_VARIABLE_BYTES, MAX_VARIABLES, VariableError, check_variables};

/// See the module.
pub struct Launcher {
    name: &'static str,
    start: Start,
    words: Vec<OsString>,
    /// The socket to the helper, once there is one.
    helper: OnceLock<OwnedFd>,
}

impl Launcher {
    /// Starts programs in this process at first. `name` is the name of `start` in the call of
    /// [`serve_if_asked`].
    pub fn new(name: &'static str, start: Start, words: Vec<OsString>) -> Launcher {
        Launcher { name, start, words, helper: OnceLock::new() }
    }

    /// Starts the helper process, if the program has called [`serve_if_asked`] and there is no
    /// helper yet. Returns whether there is one now.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub fn move_out(&self) -> io::Result<bool> {
        if self.helper.get().is_some() {
            return Ok(true);
        }
        if !helper::is_available() {
            return Ok(false);
        }
        let control = helper::start(self.name, &self.words)?;
        Ok(self.helper.set(control).is_ok())
    }

    /// Starts a program. Returns the ends of its pipes and sockets, and the program. `what` names
    /// it in messages. Blocks no longer than starting takes.
    ///
    /// # Errors
    /// Those of [`Start`]; or the helper has ended.
    pub fn launch(&self, what: &str, order: &Order) -> io::Result<(Vec<OwnedFd>, Program)> {
        match self.helper.get() {
            Some(control) => helper::order(control.as_fd(), what, order),
            None => {
                let Started { child, ends, keep } = (self.start)(&self.words, order)?;
                Ok((ends, Program::of_child(child, keep, what)))
            }
        }
    }

    /// Starts a program whose ends are its standard output and standard error, and waits for its
    /// end. Blocks.
    ///
    /// # Errors
    /// It cannot be started, it exceeds the limits, or `abandoned` is set. It is ended then, and
    /// killed after a second.
    pub fn run(
        &self,
        what: &str,
        order: &Order,
        limits: RunLimits,
        abandoned: &Abandoned,
    ) -> Result<Finished, RunError> {
        let (ends, program) = self.launch(what, order)?;
        run::to_the_end(ends, program.allow(Duration::from_secs(1)), limits, abandoned, run::AfterError::Leave)
    }

    /// [`Launcher::run`], but it also waits for the end of a program that is ended, which takes two
    /// seconds at most. So the caller knows how many there are.
    ///
    /// # Errors
    /// Those of [`Launcher::run`].
    pub fn run_and_end(
        &self,
        what: &str,
        order: &Order,
        limits: RunLimits,
        abandoned: &Abandoned,
    ) -> Result<Finished, RunError> {
        let (ends, program) = self.launch(what, order)?;
        run::to_the_end(ends, program.allow(Duration::from_secs(1)), limits, abandoned, run::AfterError::WaitForEnd)
    }
}

#[cfg(test)]
mod tests;
