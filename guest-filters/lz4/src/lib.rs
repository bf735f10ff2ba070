//! Decompresses lz4 files.

use rbdkit_filter_formats::lz4;
use rbdkit_filter_formats::unpack::{Storage, Unpacked};
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

/// The filter.
pub struct Lz4Filter {
    images: Images<Unpacked<lz4::Lz4>>,
}

impl Filter for Lz4Filter {
    type Params = ();

    fn describe() -> Description {
        Description::new("lz4", env!("CARGO_PKG_VERSION"), "decompresses lz4 files")
            .help(
                "Serves what an lz4 file (.lz4) has, read-only. Most files are decompressed once when they are opened.",
            )
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Lz4Filter { images: Images::default() })
    }
}

impl Wishes for Lz4Filter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30)]
    }
}

impl Format for Lz4Filter {
    type Image = Unpacked<lz4::Lz4>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        lz4::open(Rc::new(Next::new()?), &Storage::Host)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Lz4Filter, wishes);
