//! Decompresses xz files.

use rbdkit_filter_formats::unpack::{Limits, Storage, Unpacked};
use rbdkit_filter_formats::xz;
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

params! {
    /// The parameters.
    pub struct Settings {
        /// The largest block that is accepted, in bytes of decompressed data. The default is any.
        xz_max_block: Option<Size>,
        /// How many decompressed blocks an instance keeps in memory, at most 24 MiB.
        xz_max_depth: u64 = 8,
    }
}

/// The filter.
pub struct XzFilter {
    images: Images<Unpacked<xz::Xz>>,
    limits: Limits,
}

impl Filter for XzFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("xz", env!("CARGO_PKG_VERSION"), "decompresses xz files")
            .help(
                "Serves what an xz file (.xz) has, read-only. Each block is decompressed when it is \
                 needed. A file with a block of more than 32 MiB is decompressed once when it is opened.",
            )
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let max_block = settings.xz_max_block.map(|size| size.0);
        let limits = Limits { max_block, max_depth: settings.xz_max_depth };
        Ok(XzFilter { images: Images::default(), limits })
    }
}

impl Wishes for XzFilter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30), Wish::Memory(160 << 20)]
    }
}

impl Format for XzFilter {
    type Image = Unpacked<xz::Xz>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        xz::open(Rc::new(Next::new()?), &Storage::Host, self.limits)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(XzFilter, wishes);
