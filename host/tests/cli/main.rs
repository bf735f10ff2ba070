//! The command line from outside: every option, exact messages, exit statuses, and what is left
//! behind.
#![forbid(unsafe_code)]

mod support;

mod activation;
mod captive;
mod information;
mod lifecycle;
mod mistakes;
mod serving;
