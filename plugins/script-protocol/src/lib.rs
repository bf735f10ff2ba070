//! nbdkit's script protocol: plugins whose methods are run by programs.
//!
//! For each call of a method the plugin starts a program with the method's name and its arguments.
//! The program answers by its exit status and on standard output; data to be written comes on its
//! standard input. The sh plugin has one program for all methods, and the eval plugin has a script
//! for each. They differ only in how they are configured ([`Configure`]); everything else is here.
//!
//! * [`process`] runs one program. Input and output are moved so that neither side can block the
//!   other.
//! * [`running`] are the programs that run, which are killed when the server stops.
//! * [`tmpdir`] is the directory of the scripts.
//! * [`scripts`] chooses the program for a method, runs it, and does what its exit status asks for.
//! * [`status`] is what the exit status and the error output of a program mean.
//! * [`answers`] reads what programs print: sizes, words, lists of exports, extents.
//! * [`plugin`] and [`handle`] implement the plugin interface with these.
//!
//! The output of a program is not trusted: its length is limited, and output that does not parse is
//! an error of the request.
#![forbid(unsafe_code)]

mod answers;
mod handle;
mod plugin;
mod process;
mod running;
mod scripts;
mod status;
mod tmpdir;

pub use plugin::{Configure, ScriptPlugin};
pub use scripts::{Script, Scripts, is_running_script};
pub use status::{Answer, Failure};
