//! Serves the disk in a growing image of Bochs, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::bochs::Bochs;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

/// The filter.
#[derive(Default)]
pub struct BochsFilter {
    images: Images<Bochs>,
}

impl Filter for BochsFilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("bochs", env!("CARGO_PKG_VERSION"), "serves the disk in a growing image of Bochs")
            .help("The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(BochsFilter::default())
    }
}

impl Format for BochsFilter {
    type Image = Bochs;

    fn open_image(&self) -> Result<Bochs, Error> {
        Bochs::open(Rc::new(Next::new()?))
    }

    fn images(&self) -> &Images<Bochs> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(BochsFilter);
