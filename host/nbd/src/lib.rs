//! The NBD protocol, server side, as state machines without I/O: bytes in, typed values out, bytes
//! out.
//!
//! A connection has two phases. In the *handshake* ([`Handshake`]) the client sends its flags and
//! then options, one at a time. Each option is answered at once, or becomes a [`HandshakeAction`]
//! for which the server has to ask the chain (list the exports, open one). Servers of the oldstyle
//! protocol send one message instead ([`oldstyle_greeting`]). The *transmission* is a
//! stream of requests: [`RequestHeader`] parses one, [`Session::check`] turns it into a [`Command`]
//! or an error, and [`reply`] encodes the reply.
//!
//! A client may send anything, and this crate checks all of it. No function panics on any input.
//! None allocates more than a constant factor of the bytes that it was given, and every length is
//! checked before the server waits for that many bytes. It makes no difference how the input was
//! cut into pieces, because a message is parsed when it is complete. Only an invalid header is
//! refused before the rest of its message has come.
//!
//! A client's mistake has one of two results. Either one option or request is refused (with an
//! error reply or an errno) and the connection continues. Or it is a [`Violation`]: what follows
//! cannot be understood or trusted, and the connection ends.
#![forbid(unsafe_code)]

mod handshake;
mod oldstyle;
mod option_data;
pub mod reply;
mod strings;
mod transmission;
mod violation;
pub mod wire;

pub use handshake::{
    Export, Handshake, HandshakeAction, HandshakeConfig, MAX_OPTION, MAX_OPTIONS, OPTIONS_PER_EXPORT, TlsPolicy,
};
pub use oldstyle::{oldstyle_greeting, oldstyle_request};
pub use option_data::OpenRequest;
pub use strings::MAX_STRING;
pub use transmission::{Command, FILTER_SIZE, ReplyFormat, RequestHeader, RequestPayload, Session};
pub use violation::Violation;

#[cfg(test)]
mod tests;
