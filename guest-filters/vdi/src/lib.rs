//! Serves the disk in a VDI image of VirtualBox, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::vdi::Vdi;
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The disk to read where a differencing image has nothing of its own.
        vdi_parent: Option<Disk>,
    }
}

/// The filter.
pub struct VdiFilter {
    settings: Settings,
    images: Images<Vdi>,
}

impl Filter for VdiFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("vdi", env!("CARGO_PKG_VERSION"), "serves the disk in a VDI image of VirtualBox")
            .help("The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(VdiFilter { settings, images: Images::default() })
    }
}

impl Format for VdiFilter {
    type Image = Vdi;

    fn open_image(&self) -> Result<Vdi, Error> {
        Vdi::open(Rc::new(Next::new()?), GivenDisk::optional(&self.settings.vdi_parent)?)
    }

    fn images(&self) -> &Images<Vdi> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(VdiFilter);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    /// Two blocks of 4 KiB, of which the first was never written.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 8192];
        let numbers = [
            (0x40, 0xbeda_107fu32),
            (0x44, 0x1_0001),
            (0x4c, 1),
            (0x154, 512),
            (0x158, 4096),
            (0x168, 512),
            (0x170, 8192),
            (0x178, 4096),
            (0x180, 2),
            (512, u32::MAX),
        ];
        for (at, number) in numbers {
            image[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        image[4096..].fill(9);
        image
    }

    #[test]
    fn blocks_of_the_parent_are_read_from_the_disk_that_is_given() {
        let mut image = image();
        (image[0x4c], image[0x1a8]) = (4, 7);
        let host = || Host::new(Disk::new(image.clone())).with_disk("base", Disk::new([5; 8192]));
        let served = host().serve::<VdiFilter>(&["vdi-parent=base"]).unwrap();
        let client = served.connect().unwrap();
        served.take_calls();
        assert_eq!(client.pread(4000, 200).unwrap(), [vec![5; 96], vec![9; 104]].concat());
        assert!(served.take_calls().contains(&"disk-pread base 4000 96".to_string()));
        let served = host().serve::<VdiFilter>(&[]).unwrap();
        assert!(served.connect().is_err());
        let line = "error: the image holds only what differs from the image 00000007-0000-0000-0000-000000000000: give \
                    that disk as vdi-parent=DISK";
        assert_eq!(served.take_log(), [line]);
    }

    #[test]
    fn blocks_are_read_and_holes_are_told() {
        let served = Host::new(Disk::new(image())).serve::<VdiFilter>(&[]).unwrap();
        let client = served.connect().unwrap();
        assert_eq!(client.pread(4000, 200).unwrap(), [vec![0; 96], vec![9; 104]].concat());
        let extents = client.extents(0, 8192, CommandFlags::empty()).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).collect::<Vec<_>>(), [4096, 4096]);
        served.take_calls();
        client.pread(4096, 4096).unwrap();
        assert_eq!(served.take_calls(), ["pread 4096 4096"], "the bytes do not enter the filter");
    }
}
