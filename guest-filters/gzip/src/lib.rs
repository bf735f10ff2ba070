//! Decompresses gzip files.

use rbdkit_filter_formats::gzip;
use rbdkit_filter_formats::unpack::{Storage, Unpacked};
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

/// The filter.
pub struct GzipFilter {
    images: Images<Unpacked<gzip::Gzip>>,
}

impl Filter for GzipFilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("gzip", env!("CARGO_PKG_VERSION"), "decompresses gzip files")
            .help("Serves what a gzip file (.gz) has, read-only. The file is decompressed once when it is opened.")
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(GzipFilter { images: Images::default() })
    }
}

impl Wishes for GzipFilter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30)]
    }
}

impl Format for GzipFilter {
    type Image = Unpacked<gzip::Gzip>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        gzip::open(Rc::new(Next::new()?), &Storage::Host)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(GzipFilter, wishes);
