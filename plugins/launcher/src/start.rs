//! What a plugin gives the launcher: a function that starts its programs.

use std::any::Any;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;

/// Starts a program from the launcher's words. It runs in the server or in the helper, and blocks
/// no longer than starting takes.
pub type Start = fn(words: &[OsString], order: &Order) -> io::Result<Started>;

/// What may differ from one start to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Which of several programs to start.
    pub which: u8,
    /// A counter that is passed through to the program, for example the number of the start.
    pub number: u64,
    /// Variables for the program's environment, which satisfy [`crate::check_variables`].
    pub variables: Vec<(String, String)>,
}

/// A program that was started.
pub struct Started {
    /// The program.
    pub child: Child,
    /// The plugin's ends of the program's pipes and sockets; at most 8.
    pub ends: Vec<OwnedFd>,
    /// Dropped when the program ends or [`crate::Program::release`] is called.
    pub keep: Option<Box<dyn Any + Send>>,
}
