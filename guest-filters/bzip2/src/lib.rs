//! Decompresses bzip2 files.

use rbdkit_filter_formats::bzip2;
use rbdkit_filter_formats::unpack::{Storage, Unpacked};
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

/// The filter.
pub struct Bzip2Filter {
    images: Images<Unpacked<bzip2::Bzip2>>,
}

impl Filter for Bzip2Filter {
    type Params = ();

    fn describe() -> Description {
        Description::new("bzip2", env!("CARGO_PKG_VERSION"), "decompresses bzip2 files")
            .help("Serves what a bzip2 file (.bz2) has, read-only. The file is decompressed once when it is opened.")
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Bzip2Filter { images: Images::default() })
    }
}

impl Wishes for Bzip2Filter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30)]
    }
}

impl Format for Bzip2Filter {
    type Image = Unpacked<bzip2::Bzip2>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        bzip2::open(Rc::new(Next::new()?), &Storage::Host)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Bzip2Filter, wishes);
