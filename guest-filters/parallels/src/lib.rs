//! Serves the disk in a Parallels image, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::parallels::Parallels;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

/// A slot of the connection, in which its first instance notes that it has warned.
const WARNED: slots::Slot = slots::Slot { scope: Scope::Connection, index: 0 };

/// The filter.
#[derive(Default)]
pub struct ParallelsFilter {
    images: Images<Parallels>,
}

impl Filter for ParallelsFilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("parallels", env!("CARGO_PKG_VERSION"), "serves the disk in a Parallels image")
            .help("The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(ParallelsFilter::default())
    }
}

impl Format for ParallelsFilter {
    type Image = Parallels;

    fn open_image(&self) -> Result<Parallels, Error> {
        let image = Parallels::open(Rc::new(Next::new()?))?;
        if image.is_in_use() && WARNED.get().a == 0 {
            WARNED.replace(WARNED.get(), [1, 0, 0, 0]);
            warn!("the image was not closed by the program that wrote it: its last writes may be missing");
        }
        Ok(image)
    }

    fn images(&self) -> &Images<Parallels> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(ParallelsFilter);
