//! qcow2, the image format of qemu: versions 2 and 3.
//!
//! A disk consists of clusters of a fixed size. Its L1 table names L2 tables, and their entries say
//! where each cluster is: in the image, in a data file, in the backing file, or nowhere.

pub mod features;
mod header;
mod layout;
mod map;

pub use header::{Compression, Encryption, Header, MAGIC, Table};
pub use layout::{Entry, Layout, Packed, Place, SUBCLUSTERS, Wrong};
pub use map::{Map, Run};
