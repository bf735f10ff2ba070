//! The overlay in a file that is kept (`cow-file=`): a qcow2 image whose backing file is the layer
//! below.
//!
//! The image is written as every qcow2 image is: after a kill at any moment its tables are right,
//! and what was flushed is there. All state that instances share belongs to the filter, because the
//! file does. So one export has it: the first that a client opens.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::write::{Below, HostState, Payload as Data, Unmap, Verdict, Writer};
use rbdkit_filter_formats::qcow2::{Image, NewImage, Options};
use rbdkit_filter_sdk::image::{Error, ExtentList, Images, Next, Source, quoted};
use rbdkit_filter_sdk::prelude::*;

const STATE: HostState = HostState { scope: Scope::Server, first_slot: 0 };
/// Whether an export has the file (of the filter), and whether it is this one (of the export).
const fn owner(scope: Scope) -> slots::Slot {
    slots::Slot { scope, index: 15 }
}

/// The number of the lock for finding out which export has the file.
const OWNING: u64 = 1 << 62;

/// qemu knows whole sectors only, and would cut off the rest of a disk.
const SECTOR: u64 = 512;

/// `storage.read` and `storage.write` move at most so many bytes.
const PIECE: usize = 64 << 10;

/// What a file begins with while its overlay is being made. The header takes its place at the end.
const UNFINISHED: &[u8] = b"rbdkit: this overlay is being made";

/// The overlay, as the operator's parameters say.
pub struct Kept {
    file: StorageFile,
    cluster_bits: u32,
    backing: Option<(String, String)>,
    writers: Images<Writer>,
}

/// The file as the image's source, and as what is written.
struct File {
    file: StorageFile,
    /// How large it may become, in bytes. What is behind its end reads as zero.
    largest: u64,
}

/// How large the file may become for a disk of `size` bytes: as large as the host allows by
/// default. A 64th has the tables for any size of clusters.
fn largest(size: u64) -> u64 {
    size.saturating_add(size / 64).saturating_add(16 << 20).min(i64::MAX as u64)
}

impl Source for File {
    fn size(&self) -> u64 {
        self.largest
    }

    fn read(&self, mut offset: u64, into: &mut [u8]) -> Result<(), Error> {
        for piece in into.chunks_mut(PIECE) {
            let bytes = self.file.read(offset, piece.len() as u32)?;
            let (there, rest) = piece.split_at_mut(bytes.len());
            there.copy_from_slice(&bytes);
            rest.fill(0);
            offset += (there.len() + rest.len()) as u64;
        }
        Ok(())
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Error> {
        Ok(self.file.pread(offset, length, buffer.id(), at)?)
    }
}

impl Below for File {
    fn write(&self, mut offset: u64, data: &[u8]) -> Result<(), Errno> {
        for piece in data.chunks(PIECE) {
            self.file.write(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Errno> {
        self.file.pwrite(offset, length, buffer.id(), at)
    }

    /// Clusters are zeroed before they are used. From then on the file has all of them, as other
    /// programs expect.
    fn zero(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let (size, end) = (self.file.size()?, offset + length);
        if offset < size {
            self.file.punch(offset, length.min(size - offset))?;
        }
        if end > size { self.file.resize(end) } else { Ok(()) }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.file.punch(offset, length)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.file.flush()
    }
}

impl Kept {
    /// An overlay in `file`. If it is new, its clusters have two to the power `cluster_bits` bytes,
    /// and it has the name and the format of a backing file.
    pub fn new(file: StorageFile, cluster_bits: u32, backing: Option<(String, String)>) -> Kept {
        Kept { file, cluster_bits, backing, writers: Images::default() }
    }

    fn stored(&self, size: u64) -> Result<Rc<File>, Errno> {
        // A file that another program made may be larger.
        let largest = largest(size).max(self.file.size()?);
        Ok(Rc::new(File { file: self.file.clone(), largest }))
    }

    /// Opens the overlay for the connection that is being opened, and makes it if the file is
    /// empty. Next is open.
    ///
    /// # Errors
    /// Those of next and of the file, and a line if the file cannot be the overlay of this export.
    pub fn prepare(&self) -> Result<(), Error> {
        let size = next::get_size()?;
        let stored = self.stored(size)?;
        locks::lock(Scope::Server, OWNING, 1, locks::Mode::Exclusive)?;
        let owned = self.own(&stored, size);
        locks::unlock();
        owned?;
        let below: Rc<dyn Below> = stored;
        match STATE.prepare(&below, || self.open(size), None)? {
            Verdict::Written => Ok(()),
            Verdict::ReadOnly(Some(line)) => Err(Error::Image(format!("the overlay cannot be written: {line}"))),
            Verdict::ReadOnly(None) => Err(Errno::Erofs.into()),
        }
    }

    /// The file becomes that of this export, if it has the export's overlay and is not that of
    /// another one.
    fn own(&self, stored: &File, size: u64) -> Result<(), Error> {
        let (file, export) = (owner(Scope::Server), owner(Scope::Exportname));
        let is_free = file.get().a == 0;
        if !is_free && export.get().a == 0 {
            return Err(Error::image("cow-file= has the overlay of another export: start a server for each export"));
        }
        if is_free {
            self.make_if_new(stored, size)?;
            self.open(size)?;
            slots::add(file.scope, file.index, 1);
            slots::add(export.scope, export.index, 1);
        }
        Ok(())
    }

    /// Nobody else uses the file.
    fn make_if_new(&self, stored: &File, size: u64) -> Result<(), Error> {
        let start = self.file.read(0, UNFINISHED.len() as u32)?;
        if !start.is_empty() && start != UNFINISHED {
            return Ok(());
        }
        let new = NewImage {
            size: size.next_multiple_of(SECTOR),
            cluster_bits: self.cluster_bits,
            backing: self.backing.clone(),
            largest: stored.largest,
        };
        let created = new.create()?;
        self.file.resize(0)?;
        stored.write(0, UNFINISHED)?;
        self.file.resize(created.length)?;
        for (offset, bytes) in created.parts {
            if offset == 0 {
                // Everything else is durable before the header makes an image of it.
                self.file.flush()?;
                let first = bytes.len().max(UNFINISHED.len());
                stored.write(0, &[bytes, vec![0; first]].concat()[..first])?;
            } else {
                stored.write(offset, &bytes)?;
            }
        }
        Ok(self.file.flush()?)
    }

    fn open(&self, size: u64) -> Result<Image, Error> {
        let options = Options { base: Some(Rc::new(Next::new()?)), ..Options::default() };
        let image = Image::open(self.stored(size)?, options).map_err(|error| match error {
            Error::Image(line) => Error::Image(format!("cow-file= is not an overlay: {line}")),
            error => error,
        })?;
        if image.size() != size && image.size() != size.next_multiple_of(SECTOR) {
            return Err(Error::image(format!(
                "the overlay has a disk of {} bytes, and the layer below has {size}: it is the overlay of another disk",
                image.size()
            )));
        }
        match (&self.backing, &image.header().backing) {
            (Some((name, _)), Some(there)) if name.as_bytes() != *there => Err(Error::image(format!(
                "cow-backing={name}: the overlay names {}, and 'qemu-img rebase -u' changes the name",
                quoted(there)
            ))),
            (Some((name, _)), None) => Err(Error::image(format!(
                "cow-backing={name}: the overlay was made without a name, and 'qemu-img rebase -u' gives it one"
            ))),
            _ => Ok(image),
        }
    }

    /// The overlay of the connection that is being served.
    ///
    /// # Errors
    /// Those of next and of the file, as for all that follow.
    pub fn writer(&self) -> Result<Rc<Writer>, Errno> {
        self.writers.of_connection(|| {
            let size = next::get_size()?;
            Ok(Writer::new(self.open(size)?, self.stored(size)?, Rc::new(STATE)))
        })
    }

    /// Fills the payload.
    pub fn read(&self, offset: u64, length: u32) -> Result<(), Errno> {
        self.writer()?.read_buffer(offset, length, &buffer::Payload, 0).map_err(Error::log)
    }

    /// Writes the payload.
    pub fn write(&self, offset: u64, length: u32) -> Result<(), Errno> {
        self.writer()?.write(offset, length.into(), Data::Buffer(&buffer::Payload)).map_err(Error::log)
    }

    /// Zeroes or discards a range.
    pub fn unmap(&self, offset: u64, length: u64, how: Unmap) -> Result<(), Errno> {
        self.writer()?.unmap(offset, length, how).map_err(Error::log)
    }

    /// Makes durable what all connections have written.
    pub fn flush(&self) -> Result<(), Errno> {
        self.writer()?.flush().map_err(Error::log)
    }

    /// What is known of a range.
    pub fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let mut list = ExtentList::new(offset, length).only_one(flags.contains(CommandFlags::REQ_ONE));
        self.writer()?.extents(&mut list).map_err(Error::log)?;
        list.into_answer()
    }

    /// Asks next to cache what a range has there.
    pub fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.writer()?.cache(offset, length).map_err(Error::log)
    }

    /// Flushes, and gives back what is reserved: at the end of a connection.
    pub fn finish(&self) -> Result<(), Errno> {
        self.writer()?.finish().map_err(Error::log)
    }

    /// The connection is closed.
    pub fn close(&self) {
        self.writers.close();
    }
}

/// What a connection can do.
pub fn can(below: Capabilities) -> Capabilities {
    Capabilities {
        write: true,
        flush: true,
        rotational: below.rotational,
        trim: true,
        fast_zero: false,
        extents: true,
        // A flush makes durable what all connections have written.
        multi_conn: true,
        zero: Support::Native,
        fua: Support::Emulate,
        cache: if below.cache == Support::None { Support::Emulate } else { Support::Native },
    }
}

#[cfg(test)]
mod tests;
