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

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn sectors_that_were_written_are_read() {
        let mut image = vec![0; 516];
        image[..22].copy_from_slice(b"Bochs Virtual HD Image");
        image[32..39].copy_from_slice(b"Redolog");
        image[48..55].copy_from_slice(b"Growing");
        // One extent of two sectors.
        for (at, number) in [(64, 0x2_0000u32), (68, 512), (72, 1), (76, 1), (80, 1024), (88, 1024)] {
            image[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        // Its bitmap has the second.
        image.extend([[0; 512], [0; 512], [9; 512]].concat());
        image[516] = 2;
        let served = Host::new(Disk::new(image)).serve::<BochsFilter>(&[]).unwrap();
        let client = served.connect().unwrap();
        assert_eq!(client.pread(0, 1024).unwrap(), [[0; 512], [9; 512]].concat());
        let extents = client.extents(0, 1024, CommandFlags::empty()).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).collect::<Vec<_>>(), [512, 512]);
    }
}
