//! The command line as a user sees it: every option, exact messages, exit statuses, and the files
//! that remain.
#![forbid(unsafe_code)]

mod support;

mod activation;
mod captive;
mod information;
mod lifecycle;
mod mistakes;
mod options;
mod programs;
mod serving;
