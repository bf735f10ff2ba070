//! Starts programs for a server that gives up the right to.
//!
//! A plugin that needs programs while it serves (`ssh` for each client, a script when a token is old) says before, in a [`Launcher`], how they are
//! started and of which words. Before the server confines itself the launcher moves into a process of its own ([`Launcher::move_out`]), which
//! keeps the rights of the user. From then on the server can ask for that program with those words and a number, and for nothing else: what gets
//! hold of the server can start what the operator named once more, and cannot choose another.
//!
//! Where there is no helper, in tests and without the wall, the same code starts the program in this process.
//!
//! | module | what it knows |
//! |---|---|
//! | [`helper`] | the process that starts programs |
//! | [`program`] | a program that ends with the value, whoever started it |
//! | [`packet`] | bytes and descriptors over a socket, the protocol between the two processes |
#![forbid(unsafe_code)]

mod helper;
mod packet;
mod program;
mod start;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

pub use helper::serve_if_asked;
pub use program::Program;
pub use start::{Order, Start, Started};

/// See the module.
pub struct Launcher {
    name: &'static str,
    start: Start,
    words: Vec<OsString>,
    /// The way to the helper, once there is one.
    helper: OnceLock<OwnedFd>,
}

impl Launcher {
    /// Starts programs in this process at first. `name` is the one under which [`serve_if_asked`] gets `start`.
    pub fn new(name: &'static str, start: Start, words: Vec<OsString>) -> Launcher {
        Launcher { name, start, words, helper: OnceLock::new() }
    }

    /// Moves into a process of its own, if the program has called [`serve_if_asked`]; otherwise, and the second time, nothing happens. Whether there is a
    /// helper now.
    ///
    /// # Errors
    /// If it cannot be started.
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

    /// Starts a program: our ends, and the program. `what` names it in messages. It blocks no longer than starting takes.
    ///
    /// # Errors
    /// What [`Start`] answers; or that the helper is gone.
    pub fn launch(&self, what: &str, order: Order) -> io::Result<(Vec<OwnedFd>, Program)> {
        match self.helper.get() {
            Some(control) => helper::order(control.as_fd(), what, order),
            None => {
                let Started { child, ends, keep } = (self.start)(&self.words, order)?;
                Ok((ends, Program::of_child(child, keep, what)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
