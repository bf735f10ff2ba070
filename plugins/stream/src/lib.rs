//! What plugins share that speak with another server over a stream of bytes: the socket, and the buffer in front of it.
//!
//! No protocol is known here. What comes from the socket goes straight into a request's buffer, and how many bytes of it are believed is the
//! caller's decision.
#![deny(unsafe_code)]

mod socket;

pub use socket::{Broken, Input, Socket};
