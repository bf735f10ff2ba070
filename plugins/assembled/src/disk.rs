//! A disk of regions, as clients see it.
//!
//! Reads that need no file, and reads of what the page cache has, are answered at once. All else
//! runs on a thread that may block.

use std::path::PathBuf;
use std::sync::Arc;

use rbdkit_plugin_api::{
    Buffer, Capabilities, Disk, DiskId, Done, Errno, Error, Extents, Flags, Handle, Op, Result, Span, is_all_zero,
    run_blocking, run_blocking_with,
};

use crate::file::{Access, DiskFile};
use crate::regions::{Piece, Regions, Source};

/// The longest read that is copied from the page cache at once, in bytes. For longer ones a thread
/// costs less than it gains.
const READ_NOW: u32 = 128 << 10;

/// A file of an assembled disk.
#[derive(Debug)]
pub enum Backing {
    /// It stays open.
    Open(DiskFile),
    /// It is opened for each read, because a directory may have more files than a process may have
    /// open. A symbolic link in its place is not followed.
    Named(PathBuf),
}

/// What a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It makes all completed writes durable.
    Kept,
    /// Nothing, because the disk goes with its connection.
    Discarded,
}

/// Whether several connections may use a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They may, and a flush of one covers the writes of all.
    Shared,
    /// A client must not open it twice.
    Alone,
}

/// A disk that is put together from regions.
#[derive(Debug)]
pub struct AssembledDisk {
    regions: Regions,
    files: Vec<Backing>,
    writable: bool,
    durability: Durability,
    sharing: Sharing,
}

impl AssembledDisk {
    /// A disk of these regions, whose files have these numbers. It can be written if all of its
    /// files can.
    pub fn new(regions: Regions, files: Vec<Backing>) -> AssembledDisk {
        let writable = files.iter().all(|file| matches!(file, Backing::Open(file) if file.is_writable()));
        AssembledDisk { regions, files, writable, durability: Durability::Kept, sharing: Sharing::Shared }
    }

    /// A disk that is one file.
    ///
    /// # Errors
    /// The file is larger than 2^63 - 1 bytes.
    pub fn of_file(file: DiskFile) -> Result<AssembledDisk> {
        let mut regions = Regions::default();
        let too_large = |error: crate::TooLarge| Error::new(Errno::Eoverflow, error.to_string());
        regions.push_file(0, file.size()).map_err(too_large)?;
        Ok(AssembledDisk::new(regions, vec![Backing::Open(file)]))
    }

    /// The same for reading only.
    #[must_use]
    pub fn read_only(self) -> AssembledDisk {
        AssembledDisk { writable: false, ..self }
    }

    /// The same for one connection at a time.
    #[must_use]
    pub fn alone(self, durability: Durability) -> AssembledDisk {
        AssembledDisk { sharing: Sharing::Alone, durability, ..self }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.regions.size()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { write: self.writable, multi_conn: self.sharing == Sharing::Shared, ..Capabilities::NATIVE }
            .normalized()
    }

    /// The parts of a range of a buffer, each with its span.
    fn parts(&self, span: Span, offset: u64) -> impl Iterator<Item = (Span, Piece<'_>)> {
        let mut at = span.at;
        self.regions.pieces(offset, span.len.into()).map(move |piece| {
            // A piece is not longer than the span.
            let part = Span::new(at, piece.length as u32);
            at += part.len;
            (part, piece)
        })
    }

    /// Reads what needs no waiting. Returns whether that was all.
    fn read_now(&self, buffer: &mut Buffer, span: Span, offset: u64) -> bool {
        self.parts(span, offset).all(|(part, piece)| match piece.source {
            Source::File(number) => match &self.files[*number] {
                Backing::Open(file) if part.len <= READ_NOW => {
                    let read = |bytes: &mut [u8]| if file.read_now(bytes, piece.within) { Ok(()) } else { Err(()) };
                    buffer.fill_with(part, read).is_ok()
                }
                _ => false,
            },
            _ => {
                put(buffer, part, piece);
                true
            }
        })
    }

    fn read(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Result<()> {
        for (part, piece) in self.parts(span, offset) {
            match piece.source {
                Source::File(number) => match &self.files[*number] {
                    Backing::Open(file) => buffer.fill_with(part, |bytes| file.read(bytes, piece.within))?,
                    Backing::Named(path) => {
                        let named = |what: String| Error::new(Errno::Eio, format!("{}: {what}", path.display()));
                        let file =
                            DiskFile::open(path, Access::ReadNoLink).map_err(|error| named(error.to_string()))?;
                        let read = buffer.fill_with(part, |bytes| file.read(bytes, piece.within));
                        read.map_err(|error| named(error.to_string()))?;
                    }
                },
                _ => put(buffer, part, piece),
            }
        }
        Ok(())
    }

    fn write(&self, buffer: &Buffer, span: Span, offset: u64, flags: Flags) -> Result<()> {
        for (part, piece) in self.parts(span, offset) {
            let bytes = buffer.data(part);
            match piece.source {
                Source::File(number) => self.open_file(*number)?.write(bytes, piece.within)?,
                Source::Data(data) => match data_of(data, piece) == bytes {
                    true => {}
                    false => return Err(Error::new(Errno::Eio, "attempt to change partition table of virtual disk")),
                },
                Source::Zero => match is_all_zero(bytes) {
                    true => {}
                    false => return Err(Error::new(Errno::Eio, "write non-zeroes to padding region")),
                },
            }
        }
        self.end_change(span.len.into(), offset, flags)
    }

    /// Makes a change durable if that was asked for.
    fn end_change(&self, length: u64, offset: u64, flags: Flags) -> Result<()> {
        if !flags.fua || self.durability == Durability::Discarded {
            return Ok(());
        }
        self.regions.pieces(offset, length).try_for_each(|piece| match piece.source {
            Source::File(number) => self.open_file(*number)?.sync(),
            _ => Ok(()),
        })
    }

    fn open_file(&self, number: usize) -> Result<&DiskFile> {
        match &self.files[number] {
            Backing::Open(file) => Ok(file),
            Backing::Named(_) => Err(Errno::Erofs.into()),
        }
    }

    fn flush(&self) -> Result<()> {
        if self.durability == Durability::Discarded {
            return Ok(());
        }
        self.files.iter().try_for_each(|file| match file {
            Backing::Open(file) if file.is_writable() => file.sync(),
            _ => Ok(()),
        })
    }

    /// Discards the range. What is not in a file stays as it is, because trim is only advice.
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        for piece in self.regions.pieces(offset, length) {
            if let Source::File(number) = piece.source {
                self.open_file(*number)?.punch(piece.within, piece.length)?;
            }
        }
        self.end_change(length, offset, flags)
    }

    /// Makes the range read as zero.
    ///
    /// # Errors
    /// ENOTSUP: zeroes would have to be written. EIO: bytes of a table would change.
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        for piece in self.regions.pieces(offset, length) {
            match piece.source {
                Source::File(number) => {
                    let file = self.open_file(*number)?;
                    let done = (flags.may_trim && file.punch(piece.within, piece.length)?)
                        || file.zero(piece.within, piece.length)?;
                    if !done {
                        return Err(Errno::Enotsup.into());
                    }
                }
                Source::Data(data) if !is_all_zero(data_of(data, piece)) => {
                    return Err(Error::new(Errno::Eio, "attempt to change partition table of virtual disk"));
                }
                _ => {}
            }
        }
        self.end_change(length, offset, flags)
    }

    fn cache(&self, offset: u64, length: u64) {
        for piece in self.regions.pieces(offset, length) {
            if let Source::File(number) = piece.source
                && let Backing::Open(file) = &self.files[*number]
            {
                file.advise(piece.within, piece.length);
            }
        }
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Extents> {
        let mut extents = Extents::new(offset, length);
        for piece in self.regions.pieces(offset, length) {
            let has_room = match piece.source {
                Source::File(number) => match &self.files[*number] {
                    Backing::Open(file) => file.extents(piece.within, piece.length, &mut extents)?,
                    Backing::Named(_) => extents.push(piece.length, false, false),
                },
                Source::Data(_) => extents.push(piece.length, false, false),
                Source::Zero => extents.push(piece.length, true, true),
            };
            if !has_room {
                break;
            }
        }
        Ok(extents)
    }
}

/// The bytes of a piece of a region in memory.
fn data_of<'a>(data: &'a [u8], piece: Piece<'_>) -> &'a [u8] {
    // A region is as long as its bytes, so the piece lies within memory.
    &data[piece.within as usize..][..piece.length as usize]
}

/// Puts a piece into a buffer that is not of a file.
fn put(buffer: &mut Buffer, part: Span, piece: Piece<'_>) {
    match piece.source {
        Source::Data(data) => buffer.put(part.at, data_of(data, piece)),
        _ => buffer.set_zero(part),
    }
}

/// A connection to an assembled disk.
pub struct AssembledHandle {
    disk: Arc<AssembledDisk>,
    id: DiskId,
}

impl AssembledHandle {
    /// A connection to the plugin's only disk.
    pub fn new(disk: Arc<AssembledDisk>) -> AssembledHandle {
        AssembledHandle { disk, id: DiskId::DEFAULT }
    }

    /// A connection to one of several disks.
    pub fn to(disk: AssembledDisk, id: DiskId) -> AssembledHandle {
        AssembledHandle { disk: Arc::new(disk), id }
    }

    fn on_thread<T: Send + 'static>(
        &self,
        call: impl FnOnce(&AssembledDisk) -> Result<T> + Send + 'static,
    ) -> Op<Result<T>> {
        let disk = Arc::clone(&self.disk);
        run_blocking(move || call(&disk))
    }
}

impl Handle for AssembledHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.disk.size()))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.disk.capabilities()))
    }

    fn disk(&self) -> rbdkit_plugin_api::BoxFuture<'_, Result<Disk>> {
        Box::pin(async { Ok(Disk::Is(self.id.clone())) })
    }

    fn is_prompt(&self) -> bool {
        true
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if self.disk.read_now(&mut buffer, span, offset) {
            return Op::Ready((buffer, Ok(())));
        }
        let disk = Arc::clone(&self.disk);
        run_blocking_with(buffer, move |buffer| disk.read(buffer, span, offset))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let disk = Arc::clone(&self.disk);
        run_blocking_with(buffer, move |buffer| disk.write(buffer, span, offset, flags))
    }

    fn flush(&self) -> Op<Result<()>> {
        self.on_thread(AssembledDisk::flush)
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.on_thread(move |disk| disk.trim(offset, length, flags))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.on_thread(move |disk| disk.zero(offset, length, flags))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.on_thread(move |disk| {
            disk.cache(offset, length);
            Ok(())
        })
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        self.on_thread(move |disk| disk.extents(offset, length))
    }
}
