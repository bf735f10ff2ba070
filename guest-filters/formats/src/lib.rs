//! Decoders of formats. The filters that serve them are small crates of their own; `auto` has all
//! decoders and decides which one an image needs.
//!
//! A module is one format. It has a decoder that implements
//! [`Source`](rbdkit_filter_sdk::image::Source), and a constant [`FormatInfo`] for those who do not
//! know the format beforehand. Nothing here knows parameters, except as values that a filter hands
//! over.

pub mod auto;
pub mod block_map;
pub mod bochs;
pub mod bzip2;
pub mod checksum;
pub mod codec;
pub mod dmg;
pub mod ext2;
pub mod fat;
pub mod guid;
pub mod gzip;
pub mod iso9660;
pub mod lvm;
pub mod lz4;
pub mod lzip;
pub mod mapped;
pub mod members;
pub mod parallels;
pub mod partition;
pub mod paths;
pub mod qcow2;
pub mod report;
mod sector_bitmap;
pub mod tar;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod unpack;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod xz;
pub mod zip;
pub mod zlib;
pub mod zstd;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

pub use report::Report;

/// What opening an image gives.
pub type Opened = Result<Rc<dyn Source>, Error>;

/// A format as `auto` and `rbdkit-filter image` see it.
#[derive(Clone, Copy)]
pub struct FormatInfo {
    /// The name of the filter, lower case: `qcow2`.
    pub name: &'static str,
    /// Whether the image has the signature of the format. It reads a few bytes at fixed places. An
    /// image that is too short for them has not the signature; an error is one of the layer below.
    pub probe: fn(&dyn Source) -> Result<bool, Error>,
    /// What is known of an image that has the signature, and what is dangerous in it. It reads
    /// headers and no tables, and describes images that [`open`](FormatInfo::open) refuses as well.
    pub report: fn(&Rc<dyn Source>) -> Result<Report, Error>,
    /// Opens an image without any parameters. An error says what is wrong, or which parameter the
    /// image needs.
    pub open: fn(Rc<dyn Source>) -> Opened,
}
