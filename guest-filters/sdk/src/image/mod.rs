//! What a filter that decodes a format needs: disk images, compressed files, archives, partitions.
//!
//! A decoder is a type that implements [`Source`]: it has a size, and reads. It takes its own bytes
//! from another [`Source`]: from [`Next`], the layer below, or from a decoder again. So decoders
//! stack, and a native test gives them a `Vec<u8>`.
//!
//! This one decodes a format whose header is `DISK` and the number of bytes that follow, in 8 bytes
//! little endian:
//!
//! ```
//! use rbdkit_filter_sdk::image::{self, Error, Fields, Next, Source};
//! use rbdkit_filter_sdk::prelude::*;
//! use std::rc::Rc;
//!
//! /// An opened image.
//! struct Image {
//!     below: Rc<dyn Source>,
//!     size: u64,
//! }
//!
//! impl Image {
//!     fn open(below: Rc<dyn Source>) -> Result<Image, Error> {
//!         let header = image::read(&*below, 0, 12)?;
//!         let fields = Fields::little(&header, "the header");
//!         if fields.bytes(0, 4)? != b"DISK" {
//!             return Err(Error::image("it does not begin with DISK"));
//!         }
//!         let size = fields.u64(4)?;
//!         if size > below.size() - 12 {
//!             return Err(Error::image(format!("{size} bytes do not fit")));
//!         }
//!         Ok(Image { below, size })
//!     }
//! }
//!
//! impl Source for Image {
//!     fn size(&self) -> u64 {
//!         self.size
//!     }
//!     fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
//!         self.below.read(offset + 12, into)
//!     }
//!     // Optional: the bytes need not enter the guest.
//!     fn read_buffer(&self, from: u64, n: u32, to: &buffer::Bytes, at: u32) -> Result<(), Error> {
//!         self.below.read_buffer(from + 12, n, to, at)
//!     }
//! }
//!
//! /// The filter.
//! struct Decoder {
//!     images: image::Images<Image>,
//! }
//!
//! impl Filter for Decoder {
//!     type Params = ();
//!
//!     fn describe() -> Description {
//!         Description::new("disk", "1", "reads DISK images")
//!             .thread_model(ThreadModel::Parallel)
//!             .recovery(Recovery::Stateless)
//!     }
//!
//!     fn configure(_: ()) -> Result<Self, String> {
//!         Ok(Decoder { images: image::Images::default() })
//!     }
//! }
//!
//! impl image::Format for Decoder {
//!     type Image = Image;
//!
//!     fn open_image(&self) -> Result<Image, Error> {
//!         Image::open(Rc::new(Next::new()?))
//!     }
//!     fn images(&self) -> &image::Images<Image> {
//!         &self.images
//!     }
//! }
//!
//! rbdkit_filter_sdk::export_image!(Decoder);
//!
//! # fn main() {
//! # use rbdkit_filter_sdk::testing::{Disk, Host};
//! let host = Host::new(Disk::new(*b"DISK\x05\0\0\0\0\0\0\0hello")).serve::<Decoder>(&[]).unwrap();
//! assert_eq!(host.connect().unwrap().pread(1, 4).unwrap(), b"ello");
//! # let short = Disk::new(*b"DISK\x06\0\0\0\0\0\0\0hello");
//! # let wrong = Host::new(short).serve::<Decoder>(&[]).unwrap();
//! # assert!(wrong.connect().is_err());
//! # let lines = wrong.take_log();
//! # assert_eq!(lines, ["error: 6 bytes do not fit"]);
//! # }
//! ```
//!
//! A format whose bytes lie in the layer below as they are can be written as well: see [`InPlace`].
//!
//! An image is untrusted. Each number in it may be wrong: use [`Fields`] and checked arithmetic,
//! check a count before something is allocated for it, and limit every loop. [`BlockCache`] and
//! [`TableCache`] have a fixed bound. What a decoder keeps is a copy of what is below: an instance
//! may be lost, and a parallel filter has several.

mod cache;
mod error;
mod extents;
mod fields;
mod file_choice;
mod given;
mod in_place;
mod next;
mod serve;
mod source;
mod tables;

pub use cache::BlockCache;
pub use error::{Error, quoted};
pub use extents::ExtentList;
pub use fields::Fields;
pub use file_choice::FileChoice;
pub use given::GivenDisk;
pub use in_place::InPlace;
pub use next::Next;
pub use serve::{Format, Images};
pub use source::{Part, Source, read};
pub use tables::TableCache;
