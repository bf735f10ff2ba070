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
        let parent = self.settings.vmdk_parent.as_ref().map(given).transpose()?;
        Vmdk::open(Rc::new(Next::new()?), Given { extents, parent })
    }

    fn images(&self) -> &Images<Vmdk> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(VmdkFilter);
