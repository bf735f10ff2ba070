//! nbdkit's script protocol: plugins whose methods are run by programs.
//!
//! For each thing the server wants to know or to have done, a program is started with the method's name and its arguments. It
//! answers by its exit status and on standard output; data to be written comes on standard input. The sh plugin uses one program for
//! all methods, the eval plugin has a script for each: they differ only in how they are configured ([`Configure`]), everything
//! else is here.
//!
//! * [`process`] runs one program, moving what goes in and comes out so that neither side can block the other.
//! * [`scripts`] chooses the program for a method and gives its exit status and error output their meaning.
//! * [`answers`] reads what programs print: sizes, words, lists of exports, extents.
//! * [`plugin`] and [`handle`] are the calls of the plugin interface in these terms.
//!
//! What a program prints is never trusted: its length is bounded, and what does not parse is an error of the request.
#![forbid(unsafe_code)]

mod answers;
mod handle;
mod plugin;
mod process;
mod scripts;
mod tmpdir;

pub use plugin::{Configure, ScriptPlugin};
pub use scripts::{Answer, Failure, Script, Scripts};
