//! Serves the disk in a qcow2 image.
//!
//! The decoder knows no parameters, and this file nothing of the format. The names of other files
//! in an image are never followed: two parameters give the disks to read instead.

mod write;

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::write::{Payload as Data, Unmap, Writer};
use rbdkit_filter_formats::qcow2::{Cipher, Image, Options, Unlock};
use rbdkit_filter_sdk::image::{Error, ExtentList, Format, GivenDisk, Images, Next, Source};
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
    images: Images<Opened>,
}

/// The image of a connection.
pub enum Opened {
    /// Nothing is written to it.
    ReadOnly(Box<Image>),
    /// It is written to.
    Written(Box<Writer>),
}

impl Opened {
    fn source(&self) -> &dyn Source {
        match self {
            Opened::ReadOnly(image) => &**image,
            Opened::Written(writer) => &**writer,
        }
    }
}

impl Source for Opened {
    fn size(&self) -> u64 {
        self.source().size()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.source().read(offset, into)
    }
    fn read_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Error> {
        self.source().read_buffer(offset, length, buffer, at)
    }
    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        self.source().extents(list)
    }
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.source().cache(offset, length)
    }
    fn description(&self) -> Option<String> {
        self.source().description()
    }
}

/// The handle of a connection that writes.
const WRITTEN: u64 = 1;

/// A slot of the connection, in which its first instance notes that it has warned.
const WARNED: slots::Slot = slots::Slot { scope: Scope::Connection, index: 0 };

/// The volume key of an image. It stays in the host.
struct Luks {
    key: u32,
}

impl Cipher for Luks {
    /// The IV follows from the place in the image, not from that on the disk.
    fn decrypt(&self, buffer: &buffer::Bytes, at: u32, length: u32, host: u64, _offset: u64) -> Result<(), Errno> {
        crypto::decrypt(KEYS, self.key, buffer.id(), at, length, SECTOR as u32, host / SECTOR, 1)
    }

    fn encrypt(&self, buffer: &buffer::Bytes, at: u32, length: u32, host: u64, _offset: u64) -> Result<(), Errno> {
        crypto::encrypt(KEYS, self.key, buffer.id(), at, length, SECTOR as u32, host / SECTOR, 1)
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
            .help(
                "Writes use the free space of the image file, which keeps its size. \
                 Names of other files in the image are never followed.",
            )
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Qcow2 { settings, images: Images::default() })
    }
}

impl Qcow2 {
    fn open_disk(&self) -> Result<Image, Error> {
        let options = Options {
            snapshot: self.settings.qcow2_snapshot.clone(),
            backing: GivenDisk::optional(&self.settings.qcow2_backing)?,
            data: GivenDisk::optional(&self.settings.qcow2_data)?,
            unlock: self.settings.qcow2_passphrase.clone().map(unlocking),
            ..Options::default()
        };
        let image = Image::open(Rc::new(Next::new()?), options)?;
        if WARNED.get().a == 0 {
            WARNED.replace(WARNED.get(), [1, 0, 0, 0]);
            image.warnings().iter().for_each(|line| warn!("{line}"));
        }
        Ok(image)
    }

    /// Does something with the image of a connection that writes.
    fn written(&self, change: impl FnOnce(&Writer) -> Result<(), Error>) -> Result<(), Errno> {
        match &*self.image()? {
            Opened::ReadOnly(_) => Err(Errno::Erofs),
            Opened::Written(writer) => change(writer).map_err(Error::log),
        }
    }
}

impl Format for Qcow2 {
    type Image = Opened;

    fn open_image(&self) -> Result<Opened, Error> {
        let image = self.open_disk()?;
        Ok(if request::handle() == WRITTEN {
            Opened::Written(Box::new(write::writer(image)?))
        } else {
            Opened::ReadOnly(Box::new(image))
        })
    }

    fn images(&self) -> &Images<Opened> {
        &self.images
    }
}

impl Connection for Qcow2 {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        self.open_next(readonly, exportname)?;
        let can_be_written =
            !readonly && next::can()?.write && write::prepare(|| self.open_disk()).map_err(Error::log)?;
        Ok(if can_be_written { WRITTEN } else { 0 })
    }
    fn prepare(&self) -> Result<(), Errno> {
        self.image().map(drop)
    }
    fn finalize(&self) -> Result<(), Errno> {
        if request::handle() == WRITTEN { self.written(Writer::finish) } else { Ok(()) }
    }
    fn close(&self) {
        self.close_image();
    }
}

rbdkit_filter_sdk::image_reads!(Qcow2);

impl Features for Qcow2 {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let can = self.image_can(below);
        Ok(if request::handle() == WRITTEN { write::can(can, below) } else { can })
    }
}

impl Writes for Qcow2 {
    fn pwrite(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.written(|writer| writer.write(offset, length.into(), Data::Buffer(&buffer::Payload)))
    }
}

impl Flushes for Qcow2 {
    fn flush(&self) -> Result<(), Errno> {
        self.written(Writer::flush)
    }
}

impl Trims for Qcow2 {
    fn trim(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<(), Errno> {
        self.written(|writer| writer.unmap(offset, length, Unmap::Discard))
    }
}

impl Zeroes for Qcow2 {
    fn zero(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<(), Errno> {
        self.written(|writer| writer.unmap(offset, length, Unmap::Zero))
    }
}

rbdkit_filter_sdk::export!(
    Qcow2: connection, info, features, reads, writes, flushes, trims, zeroes, mapping, caching
);

#[cfg(test)]
mod tests;
