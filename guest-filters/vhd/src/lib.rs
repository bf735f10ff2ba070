//! Serves the disk in a VHD image of Virtual PC or Hyper-V, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::vhd::{self, Image};
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The parent of a differencing disk, as a raw disk. A name in the image is never opened.
        vhd_parent: Option<Disk>,
    }
}

/// The filter.
pub struct Vhd {
    settings: Settings,
    images: Images<Image>,
}

impl Filter for Vhd {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("vhd", env!("CARGO_PKG_VERSION"), "serves the disk in a VHD image of Virtual PC or Hyper-V")
            .help("The disk is read-only. The image's names of a parent are never followed.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Vhd { settings, images: Images::default() })
    }
}

impl Format for Vhd {
    type Image = Image;

    fn open_image(&self) -> Result<Image, Error> {
        vhd::open(Rc::new(Next::new()?), || Ok(GivenDisk::optional(&self.settings.vhd_parent)?))
    }

    fn images(&self) -> &Images<Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Vhd);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    /// A footer of this type, with the copy's fields that a disk of 8 KiB needs.
    fn signed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// A differencing disk of two blocks of 4 KiB. The first one has its first sector, of nines.
    fn image() -> Vec<u8> {
        let mut footer = vec![0; 512];
        footer[..8].copy_from_slice(b"conectix");
        footer[13] = 1;
        footer[22] = 2;
        footer[28..32].copy_from_slice(b"win ");
        footer[54] = 32;
        footer[63] = 4;
        let footer = signed(footer, 64);
        let mut header = vec![0; 1024];
        header[..8].copy_from_slice(b"cxsparse");
        header[22] = 6;
        header[25] = 1;
        header[31] = 2;
        header[34] = 16;
        header[65] = b'p';
        let mut table = vec![0xff; 512];
        table[..4].copy_from_slice(&4u32.to_be_bytes());
        let mut block = vec![9; 512 + 4096];
        block[..512].fill(0);
        block[0] = 0x80;
        [footer.clone(), signed(header, 36), table, block, footer].concat()
    }

    #[test]
    fn the_parent_is_what_the_operator_gave() {
        let host = Host::new(Disk::new(image())).with_disk("base", Disk::new(vec![5; 8192]));
        let served = host.serve::<Vhd>(&["vhd-parent=base"]).unwrap();
        let client = served.connect().unwrap();
        assert_eq!(client.pread(0, 8192).unwrap(), [vec![9; 512], vec![5; 7680]].concat());
        // The simulated host has two instances, and each reads the tables once.
        client.pread(0, 8192).unwrap();
        served.take_calls();
        client.pread(0, 8192).unwrap();
        let calls = served.take_calls();
        let expected = ["pread 2560 512", "disk-pread base 512 7680"];
        assert_eq!(calls, expected, "the bytes do not enter the filter");
    }

    #[test]
    fn without_the_parameter_the_image_is_refused_with_the_name() {
        let served = Host::new(Disk::new(image())).serve::<Vhd>(&[]).unwrap();
        assert!(served.connect().is_err());
        let line = "error: the image is a differencing disk and names the parent 'p': no file is opened by its name, \
                    give the parent with vhd-parent=";
        assert_eq!(served.take_log(), [line]);
    }
}
