//! Serves the disk in a qcow2 image, read-only.
//!
//! The decoder knows no parameters, and this file nothing of the format. The names of other files
//! in an image are never followed: two parameters give the disks to read instead.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::{Cipher, Image, Options, Unlock};
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::luks::{self, KEYS, SECTOR};

params! {
    /// The parameters.
    pub struct Settings {
        /// Serve the snapshot with this name or ID instead of the current state.
        qcow2_snapshot: Option<String>,
        /// The disk to read where the image refers to its backing file.
        qcow2_backing: Option<Disk>,
        /// The disk to read where the image refers to its external data file.
        qcow2_data: Option<Disk>,
        /// The passphrase of an image that is encrypted with LUKS; +FILENAME reads it from a file,
        /// -FD from a descriptor, - asks for it.
        qcow2_passphrase: Option<Secret>,
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

/// The volume key of an image. It stays in the host.
struct Luks {
    key: u32,
}

impl Cipher for Luks {
    /// The IV follows from the place in the image, not from that on the disk.
    fn decrypt(&self, buffer: &buffer::Bytes, at: u32, length: u32, host: u64, _offset: u64) -> Result<(), Errno> {
        crypto::decrypt(KEYS, self.key, buffer.id(), at, length, SECTOR as u32, host / SECTOR, 1)
    }
}

fn unlocking(passphrase: Secret) -> Rc<Unlock> {
    Rc::new(move |header| {
        let unlocked = luks::unlock(&*header, &passphrase, "qcow2").map_err(|refusal| {
            if let Some(line) = &refusal.line {
                error!("LUKS: {line}");
            }
            refusal.errno
        })?;
        if u64::from(unlocked.volume.sector) != SECTOR {
            return Err(Error::image(format!(
                "the header of LUKS says sectors of {} bytes, and qcow2 has those of {SECTOR}",
                unlocked.volume.sector
            )));
        }
        Ok(Rc::new(Luks { key: unlocked.key }))
    })
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
            unlock: self.settings.qcow2_passphrase.clone().map(unlocking),
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

#[cfg(test)]
mod tests;
