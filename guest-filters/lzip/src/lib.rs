//! Decompresses lzip files.

use rbdkit_filter_formats::lzip;
use rbdkit_filter_formats::unpack::{Limits, Storage, Unpacked};
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

params! {
    /// The parameters.
    pub struct Settings {
        /// The largest member that is accepted, in bytes of decompressed data. The default is any.
        lzip_max_block: Option<Size>,
        /// How many decompressed members an instance keeps in memory, at most 24 MiB.
        lzip_max_depth: u64 = 8,
    }
}

/// The filter.
pub struct LzipFilter {
    images: Images<Unpacked<lzip::Lzip>>,
    limits: Limits,
}

impl Filter for LzipFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("lzip", env!("CARGO_PKG_VERSION"), "decompresses lzip files")
            .help(
                "Serves what an lzip file (.lz) has, read-only. Each member is decompressed when it is \
                 needed. A file with a member of more than 32 MiB is decompressed once when it is opened.",
            )
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let max_block = settings.lzip_max_block.map(|size| size.0);
        let limits = Limits { max_block, max_depth: settings.lzip_max_depth };
        Ok(LzipFilter { images: Images::default(), limits })
    }
}

impl Wishes for LzipFilter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30), Wish::Memory(160 << 20)]
    }
}

impl Format for LzipFilter {
    type Image = Unpacked<lzip::Lzip>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        lzip::open(Rc::new(Next::new()?), &Storage::Host, self.limits)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(LzipFilter, wishes);
