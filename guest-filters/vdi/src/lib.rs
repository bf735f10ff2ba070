//! Serves the disk in a VDI image of VirtualBox, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::vdi::Vdi;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

/// The filter.
#[derive(Default)]
pub struct VdiFilter {
    images: Images<Vdi>,
}

impl Filter for VdiFilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("vdi", env!("CARGO_PKG_VERSION"), "serves the disk in a VDI image of VirtualBox")
            .help("The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(VdiFilter::default())
    }
}

impl Format for VdiFilter {
    type Image = Vdi;

    fn open_image(&self) -> Result<Vdi, Error> {
        Vdi::open(Rc::new(Next::new()?))
    }

    fn images(&self) -> &Images<Vdi> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(VdiFilter);
