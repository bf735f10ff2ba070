//! An NBD client written by hand from the protocol's text, for what well-behaved clients never do.
//!
//! [`Stream`] sends and receives single messages, in any order and of any kind. [`Client`] is negotiated and keeps many requests in flight;
//! it checks every reply against its request: chunks lie within the range, cover it once, holes have a length, a reply ends once.

mod client;
mod numbers;
mod stream;

pub use client::{Client, Extent, Reply};
pub use numbers::*;
pub use stream::{OptionReply, Stream, contexts, go, request};
