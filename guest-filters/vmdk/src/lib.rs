//! Serves the disk in a VMDK image, read-only.
//!
//! The decoder knows no parameters, and this file nothing of the format. The names of other files
//! in an image are never followed: the parameters give the files to read instead.

use std::rc::Rc;

use rbdkit_filter_formats::vmdk::{Given, Vmdk};
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// A file with an extent of the disk, in the order of the descriptor; repeat it for each.
        vmdk_extent: Vec<Disk>,
        /// The disk to read where the image has nothing of its own.
        vmdk_parent: Option<Disk>,
    }
}

/// The filter.
pub struct VmdkFilter {
    settings: Settings,
    images: Images<Vmdk>,
}

fn given(disk: &Disk) -> Result<Rc<dyn Source>, Errno> {
    Ok(Rc::new(GivenDisk::new(disk)?))
}

impl Filter for VmdkFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("vmdk", env!("CARGO_PKG_VERSION"), "serves the disk in a VMDK image of VMware")
            .help("The disk is read-only. Names of other files in the image are never followed.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(VmdkFilter { settings, images: Images::default() })
    }
}

impl Format for VmdkFilter {
    type Image = Vmdk;

    fn open_image(&self) -> Result<Vmdk, Error> {
        let extents = self.settings.vmdk_extent.iter().map(given).collect::<Result<_, _>>()?;
        let parent = GivenDisk::optional(&self.settings.vmdk_parent)?;
        Vmdk::open(Rc::new(Next::new()?), Given { extents, parent })
    }

    fn images(&self) -> &Images<Vmdk> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(VmdkFilter);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    /// A descriptor of two sectors in files and one of zeroes.
    const TEXT: &[u8] = b"# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\
        RW 1 FLAT \"/etc/passwd\" 1\nRW 1 ZERO\nRW 1 FLAT \"b\" 0\n";

    fn host() -> Host {
        let first = Disk::new([[1; 512], [2; 512]].concat());
        Host::new(Disk::new(TEXT)).with_disk("a.img", first).with_disk("b.img", Disk::new([3; 512]))
    }

    #[test]
    fn extents_are_read_in_the_order_in_which_they_are_given() {
        let served = host().serve::<VmdkFilter>(&["vmdk-extent=a.img", "vmdk-extent=b.img"]).unwrap();
        let client = served.connect().unwrap();
        assert_eq!(client.pread(0, 1536).unwrap(), [[2; 512], [0; 512], [3; 512]].concat());
        served.take_calls();
        assert_eq!(client.pread(500, 24).unwrap(), [[2; 12], [0; 12]].concat());
        assert_eq!(served.take_calls(), ["disk-pread a.img 1012 12"], "the bytes do not enter the filter");
        assert_eq!(client.pwrite(0, b"x", CommandFlags::empty()), Err(Errno::Erofs));
    }

    #[test]
    fn without_an_extent_the_connection_is_refused_with_its_name() {
        let served = host().serve::<VmdkFilter>(&["vmdk-extent=a.img"]).unwrap();
        assert!(served.connect().is_err());
        let line = "error: the image has its data in other files: give extent 2 of 2, which it calls 'b', as \
                    vmdk-extent=FILE";
        assert_eq!(served.take_log(), [line]);
    }
}
