//! An NBD client written by hand from the protocol's text. It can do what well-behaved clients
//! never do.
//!
//! [`Stream`] sends and receives single messages, in any order and of any kind. [`Client`] is
//! negotiated and keeps many requests in flight. It checks every reply against its request: chunks
//! lie within the range and cover it once, holes have a length, a reply ends once.

mod client;
mod numbers;
mod stream;

pub use client::{Client, Extent, Replies, Reply};
pub use numbers::*;
pub use stream::{OptionReply, Stream, contexts, extended_request, go, request};
