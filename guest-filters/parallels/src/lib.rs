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

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn an_image_that_was_not_closed_is_served_with_one_warning_for_each_connection() {
        let mut image = vec![0; 1024];
        image[..16].copy_from_slice(b"WithouFreSpacExt");
        // Two clusters of one sector, of which the second is stored.
        for (at, number) in [(16, 2u32), (28, 1), (32, 2), (36, 2), (44, 0x746f_6e59), (68, 1)] {
            image[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        image[512..].fill(9);
        let served = Host::new(Disk::new(image)).serve::<ParallelsFilter>(&[]).unwrap();
        let client = served.connect().unwrap();
        assert_eq!(client.pread(0, 1024).unwrap(), [[0; 512], [9; 512]].concat());
        let line = "warning: the image was not closed by the program that wrote it: its last writes may be missing";
        assert_eq!(served.take_log(), [line]);
    }
}
