//! The HTTP client that carries the requests of object_store.
//!
//! It is small on purpose: HTTP/1.1 over TCP or TLS, with connections that are kept and bounds on
//! all that a server can make us hold. It resolves names as the C library does and opens
//! certificates as `rbdkit-tls` does, so a confined server can use it.
//!
//! | module | subject |
//! |---|---|
//! | [`client`] | a request and its answer, and connections that are kept |
//! | [`body`] | the body of an answer |
//! | [`stream`] | a connection: TCP, and TLS over it |
//! | [`attempt`] | what a request is told besides object_store's words, and what is learnt of it |

pub(crate) mod attempt;
mod body;
mod client;
mod stream;

pub(crate) use client::{Connector, HttpSettings};
