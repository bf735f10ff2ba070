//! qcow2, the image format of qemu: versions 2 and 3.
//!
//! A disk consists of clusters of a fixed size. Its L1 table names L2 tables, and their entries say
//! where each cluster is: in the image, in a data file, in the backing file, or nowhere. A snapshot
//! is another L1 table.
//!
//! The names of other files that an image has are shown and never followed: [`Options`] has the
//! disks to read instead. Reference counts decide nothing for reading, so they are not read.

mod create;
pub mod features;
mod header;
mod image;
mod layout;
mod map;
mod packed;
mod report;
pub mod snapshots;
#[cfg(test)]
mod tests;
pub mod write;

use std::rc::Rc;

use crate::FormatInfo;

pub use create::{Created, NewImage};
pub use header::{Compression, Encryption, Header, MAGIC, Table};
pub use image::{Cipher, Image, Options, Unlock};
pub use layout::{Entry, Layout, Packed, Place, SUBCLUSTERS, Wrong};
pub use map::{Map, Run};

/// The format, for who does not know it beforehand.
pub const INFO: FormatInfo = FormatInfo {
    name: "qcow2",
    probe: Header::probe,
    report: report::report,
    open: |source| Ok(Rc::new(Image::open(source, Options::default())?)),
};
