//! Serves the disk in a VHDX image of Hyper-V, read-only.
//!
//! The decoder is in the library of formats. This file has nothing of the format.

use std::rc::Rc;

use rbdkit_filter_formats::vhdx::{self, Image};
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The parent of a differencing disk: a raw disk, or the VHDX image that it was made for.
        /// A name in the image is never opened.
        vhdx_parent: Option<Disk>,
    }
}

/// The filter.
pub struct Vhdx {
    settings: Settings,
    images: Images<Image>,
}

impl Filter for Vhdx {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("vhdx", env!("CARGO_PKG_VERSION"), "serves the disk in a VHDX image of Hyper-V")
            .help(
                "The disk is read-only. A log is replayed in memory. The image's names of a parent are never followed.",
            )
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Vhdx { settings, images: Images::default() })
    }
}

impl Format for Vhdx {
    type Image = Image;

    fn open_image(&self) -> Result<Image, Error> {
        vhdx::open(Rc::new(Next::new()?), || Ok(GivenDisk::optional(&self.settings.vhdx_parent)?))
    }

    fn images(&self) -> &Images<Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Vhdx);

#[cfg(test)]
mod tests {
    use rbdkit_filter_formats::testing::vhdx::{BAT, Change, Layout, LogEntry, put_log};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    use super::*;

    const MIB: usize = 1 << 20;

    /// A differencing disk of 4 MiB. Block 1 has nines. A log says that block 2 has them as well.
    fn image() -> Vec<u8> {
        let locator = vec![("parent_linkage", "p".to_string()), ("relative_path", "base".to_string())];
        let table = vec![(1, 6, 4)];
        let layout = Layout { flags: 2, locator, table, blocks: vec![9; MIB], ..Layout::default() };
        let mut image = layout.image();
        let mut table = image[BAT..BAT + 4096].to_vec();
        table.copy_within(8..16, 16);
        let size = image.len() as u64;
        let entry = LogEntry {
            sequence: 1,
            tail: 0,
            flushed: size,
            last: size,
            changes: vec![Change::Data(BAT as u64, table), Change::Zero(4 << 20, 4096)],
        };
        put_log(&mut image, 0, &entry.bytes());
        image
    }

    #[test]
    fn the_parent_is_what_the_operator_gave_and_the_log_is_replayed() {
        let host = Host::new(Disk::new(image())).with_disk("base", Disk::new(vec![5; 4 * MIB]));
        let served = host.serve::<Vhdx>(&["vhdx-parent=base"]).unwrap();
        let client = served.connect().unwrap();
        let block = [vec![0; 4096], vec![9; MIB - 4096]].concat();
        let disk = [vec![5; MIB], block.clone(), block, vec![5; MIB]].concat();
        assert!(client.pread(0, 4 << 20).unwrap() == disk);
        // The simulated host has two instances, and each reads the tables once.
        client.pread(0, 4 << 20).unwrap();
        served.take_calls();
        assert!(client.pread(MIB as u64 - 512, MIB as u32 + 1024).unwrap() == disk[MIB - 512..2 * MIB + 512]);
        let expected = ["disk-pread base 1048064 512", "pread 4198400 1044480"];
        assert_eq!(served.take_calls(), expected, "the bytes do not enter the filter");
    }

    #[test]
    fn without_the_parameter_the_image_is_refused_with_the_name() {
        let served = Host::new(Disk::new(image())).serve::<Vhdx>(&[]).unwrap();
        assert!(served.connect().is_err());
        let line = "error: the image is a differencing disk and names the parent 'base': no file is opened by its \
                    name, give the parent with vhdx-parent=";
        assert_eq!(served.take_log(), [line]);
    }
}
