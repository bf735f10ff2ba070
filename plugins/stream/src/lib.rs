//! A stream socket to another server, and the buffer of its receiving side, for the plugins nbd and
//! ssh.
//!
//! The socket may be encrypted from some moment on ([`Socket::start_tls`]).
//!
//! The crate knows no protocol. Bytes from the socket go straight into the buffer of a request. The
//! caller checks lengths before it asks for that many bytes.

mod socket;
mod wire;

pub use socket::{ConnectionError, Input, Socket};
