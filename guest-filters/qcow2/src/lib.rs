//! Serves the disk in a qcow2 image, read-only.
//!
//! The decoder knows no parameters, and this file nothing of the format. The names of other files
//! in an image are never followed: two parameters give the disks to read instead.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::{Image, Options};
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// Serve the snapshot with this name or ID instead of the current state.
        qcow2_snapshot: Option<String>,
        /// The disk to read where the image refers to its backing file.
        qcow2_backing: Option<Disk>,
        /// The disk to read where the image refers to its external data file.
        qcow2_data: Option<Disk>,
    }
}

/// The filter.
pub struct Qcow2 {
    settings: Settings,
    images: Images<Image>,
}

/// A slot of the connection, in which its first instance notes that it has warned.
const WARNED: slots::Slot = slots::Slot { scope: Scope::Connection, index: 0 };

fn given(disk: &Option<Disk>) -> Result<Option<Rc<dyn Source>>, Errno> {
    disk.as_ref().map(|disk| Ok(Rc::new(GivenDisk::new(disk)?) as Rc<dyn Source>)).transpose()
}

impl Filter for Qcow2 {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("qcow2", env!("CARGO_PKG_VERSION"), "serves the disk in a qcow2 image")
            .help("The disk is read-only. Names of other files in the image are never followed.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Qcow2 { settings, images: Images::default() })
    }
}

impl Format for Qcow2 {
    type Image = Image;

    fn open_image(&self) -> Result<Image, Error> {
        let options = Options {
            snapshot: self.settings.qcow2_snapshot.clone(),
            backing: given(&self.settings.qcow2_backing)?,
            data: given(&self.settings.qcow2_data)?,
            cipher: None,
        };
        let image = Image::open(Rc::new(Next::new()?), options)?;
        if WARNED.get().a == 0 {
            WARNED.replace(WARNED.get(), [1, 0, 0, 0]);
            image.warnings().iter().for_each(|line| warn!("{line}"));
        }
        Ok(image)
    }

    fn images(&self) -> &Images<Image> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Qcow2);
