//! Decompresses zstd files.

use rbdkit_filter_formats::unpack::{Limits, Storage, Unpacked};
use rbdkit_filter_formats::zstd::{self, Options};
use rbdkit_filter_sdk::image::{self, Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;
use std::rc::Rc;
use std::time::Duration;

params! {
    /// The parameters.
    pub struct Settings {
        /// The largest frame that is accepted, in bytes of decompressed data. The default is any.
        zstd_max_block: Option<Size>,
        /// How many decompressed frames an instance keeps in memory, at most 24 MiB.
        zstd_max_depth: u64 = 8,
        /// The largest window that is accepted, at most 1G.
        zstd_max_window: Size = Size(Options::MAX_WINDOW),
    }
}

/// The filter.
pub struct ZstdFilter {
    images: Images<Unpacked<zstd::Zstd>>,
    options: Options,
}

impl Filter for ZstdFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("zstd", env!("CARGO_PKG_VERSION"), "decompresses zstd files")
            .help(
                "Serves what a zstd file (.zst) has, read-only. If the frames of the file are known, each is \
                 decompressed when it is needed. Other files, and those with a frame of more than 32 MiB, are \
                 decompressed once when they are opened.",
            )
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let max_window = settings.zstd_max_window.0;
        if max_window > Options::LARGEST_WINDOW {
            return Err(format!("zstd-max-window={max_window}: is more than 1G ({})", Options::LARGEST_WINDOW));
        }
        let max_block = settings.zstd_max_block.map(|size| size.0);
        let limits = Limits { max_block, max_depth: settings.zstd_max_depth };
        Ok(ZstdFilter { images: Images::default(), options: Options { limits, max_window } })
    }
}

impl Wishes for ZstdFilter {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30), Wish::Memory(160 << 20)]
    }
}

impl Format for ZstdFilter {
    type Image = Unpacked<zstd::Zstd>;

    fn open_image(&self) -> Result<Self::Image, Error> {
        zstd::open(Rc::new(Next::new()?), &Storage::Host, self.options)
    }

    fn images(&self) -> &image::Images<Self::Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(ZstdFilter, wishes);
