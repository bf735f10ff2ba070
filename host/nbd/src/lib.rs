//! The NBD protocol, server side, as state machines without I/O: bytes in, typed values out, bytes out.
//!
//! A connection lives through two phases. In the *handshake* ([`Handshake`]) the client sends its flags and then options, one at a
//! time; each is answered at once or becomes a [`Wish`] that only the chain can fulfil (list the exports, open one). The
//! *transmission* is a stream of requests: [`RequestHeader`] takes one apart, [`Session::check`] makes a [`Command`] of it or says
//! with which error it is refused, and [`reply`] encodes the answer.
//!
//! Everything that a client sends is hostile until it has passed through here. No function panics on any input, none
//! allocates more than the bytes it was given (a constant factor aside), and lengths are checked before they are waited for. How the
//! input was cut into pieces makes no difference: a message is taken once it is complete and not looked at in part, except for what
//! makes it unacceptable from its header alone.
//!
//! A client's mistake is one of three things: a refusal of one option or request, after which the conversation goes on (an
//! error reply, an errno); or a [`Violation`], after which nothing that follows can be understood or trusted, and the connection ends.

mod handshake;
pub mod reply;
mod transmission;
pub mod wire;

pub use handshake::{Export, Handshake, HandshakeConfig, MAX_OPTION, MAX_OPTIONS, MAX_STRING, Opening, Wish};
pub use transmission::{Command, Payload, RequestHeader, Session};

use std::fmt;

/// The client broke the protocol in a way that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Client flags that the server did not offer.
    ClientFlags(u32),
    /// An option does not begin with the magic number.
    OptionMagic(u64),
    /// An option longer than [`MAX_OPTION`].
    OptionTooLong(u32),
    /// More than [`MAX_OPTIONS`] options without choosing an export.
    TooManyOptions,
    /// An option other than EXPORT_NAME from a client that does not speak fixed newstyle.
    OptionNotFixed(u32),
    /// EXPORT_NAME, which has no error reply, with a name that cannot be.
    ExportName,
    /// A request does not begin with the magic number.
    RequestMagic(u32),
    /// A write's payload is too long even to be skipped.
    PayloadTooLong(u32),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::ClientFlags(flags) => write!(f, "unknown client flags {flags:#x}"),
            Violation::OptionMagic(magic) => write!(f, "an option begins with {magic:#018x}"),
            Violation::OptionTooLong(length) => write!(f, "an option of {length} bytes"),
            Violation::TooManyOptions => write!(f, "more than {MAX_OPTIONS} options and no export chosen"),
            Violation::OptionNotFixed(option) => {
                write!(f, "option {option} from a client that does not speak fixed newstyle")
            }
            Violation::ExportName => write!(f, "EXPORT_NAME with an impossible name"),
            Violation::RequestMagic(magic) => write!(f, "a request begins with {magic:#010x}"),
            Violation::PayloadTooLong(length) => write!(f, "a write of {length} bytes"),
        }
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests;
