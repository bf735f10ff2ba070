//! The record of what passed the gates of one layer of a server: every call from above with its
//! answer, and every call that the layer sent down with its answer.
//!
//! [`recording_layer`] makes layers that pass everything on and record it. A server puts one in
//! front of the recorded layer and one behind it. Without a record there is no such layer, so
//! nothing of this is on the way of a request.
//!
//! [`Reader`] reads a record. It is for records of any origin: a damaged or hostile file gives an
//! error that names a byte, and never more memory than the file's size.
//!
//! A record is always a beginning of what happened: an entry that is lost ends it. So whoever reads
//! it never has to guess what was in a gap. Its format is in [`format`](mod@format), and in
//! `guest-filters/README.md` for people.
#![forbid(unsafe_code)]

mod before_open;
mod decode;
mod encode;
mod entry;
mod layer;
mod payload;
mod reader;
mod recorder;

pub use layer::recording_layer;
pub use payload::digest;
pub use reader::{Positioned, ReadError, Reader};
pub use recorder::{Options, Recorder};

/// What the entries of a record are, and their bytes.
pub mod format {
    pub use crate::decode::{Wrong, decode};
    pub use crate::encode::Frame;
    pub use crate::entry::*;
}

#[cfg(test)]
mod tests;
