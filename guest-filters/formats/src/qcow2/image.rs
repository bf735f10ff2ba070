//! The disk that an image has.

use std::rc::Rc;

use rbdkit_filter_sdk::Errno;
use rbdkit_filter_sdk::buffer::{Buffer, Bytes};
use rbdkit_filter_sdk::image::{Error, ExtentList, Part, Source, quoted};

use super::features;
use super::header::{Encryption, Header};
use super::layout::Place;
use super::map::Map;
use super::packed::PackedClusters;
use super::snapshots::{self, Snapshot};

/// A call looks at so many parts of tables at most. An answer about extents then ends, and the
/// client asks again; caching is advisory.
const MOST_RUNS: u32 = 4096;

/// At most so many encrypted bytes are decrypted at once, if they are not decrypted in place.
pub(super) const PIECE: u64 = 256 << 10;

/// The unit of encryption.
pub(super) const SECTOR: u64 = 512;

/// What an image needs beside itself.
#[derive(Clone, Default)]
pub struct Options {
    /// The name or ID of the snapshot to serve.
    pub snapshot: Option<String>,
    /// What to read instead of the backing file that the image names.
    pub backing: Option<Rc<dyn Source>>,
    /// What to read where the image has nothing of its own, whatever its header says of a backing
    /// file: the image is an overlay over it.
    pub base: Option<Rc<dyn Source>>,
    /// What to read instead of the data file that the image names.
    pub data: Option<Rc<dyn Source>>,
    /// Makes what decrypts the clusters, from the header of LUKS that the image has.
    pub unlock: Option<Rc<Unlock>>,
}

/// Makes what decrypts the clusters. It gets the header of LUKS.
pub type Unlock = dyn Fn(Rc<dyn Source>) -> Result<Rc<dyn Cipher>, Error>;

/// Encrypts and decrypts the clusters of an image.
pub trait Cipher {
    /// Decrypts `length` bytes of a buffer from `at` on in place. They are whole sectors of 512
    /// bytes, which are at `host` of the image and at `offset` of the disk.
    ///
    /// # Errors
    /// Those of the host.
    fn decrypt(&self, buffer: &Bytes, at: u32, length: u32, host: u64, offset: u64) -> Result<(), Errno>;

    /// Encrypts in place. As [`decrypt`](Cipher::decrypt).
    ///
    /// # Errors
    /// Those of the host.
    fn encrypt(&self, buffer: &Bytes, at: u32, length: u32, host: u64, offset: u64) -> Result<(), Errno>;
}

/// An opened image.
pub struct Image {
    header: Header,
    snapshot: Option<Snapshot>,
    size: u64,
    map: Map,
    packed: PackedClusters,
    /// Where clusters are that are not compressed: the image, or the data file.
    data: Rc<dyn Source>,
    backing: Option<Rc<dyn Source>>,
    cipher: Option<Rc<dyn Cipher>>,
}

impl Image {
    /// Opens an image.
    ///
    /// # Errors
    /// Those of the source, and a line if the image is wrong, is not supported, or needs an option.
    pub fn open(source: Rc<dyn Source>, options: Options) -> Result<Image, Error> {
        let header = Header::read(&source)?;
        header.check(&*source)?;
        check_options(&header, &options)?;
        let layout = header.layout();
        let mut map = Map::new(Rc::clone(&source), layout, header.l1);
        let mut size = header.size;
        let snapshot = match &options.snapshot {
            None => None,
            Some(wanted) => {
                let found = snapshots::find(&header, map.cache(), wanted)?;
                header.check_l1(&*source, found.l1, found.size, "the L1 table of the snapshot")?;
                map = Map::new(Rc::clone(&source), layout, found.l1);
                size = found.size;
                Some(found)
            }
        };
        let cipher = options.unlock.map(|unlock| unlock(luks_header(&header, &source)?)).transpose()?;
        let packed = PackedClusters::new(layout, header.compression);
        let data = options.data.unwrap_or(source);
        let backing = options.base.or(options.backing);
        Ok(Image { header, snapshot, size, map, packed, data, backing, cipher })
    }

    /// What its header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the image still has the header that was read when it was opened.
    ///
    /// # Errors
    /// Those of [`Header::read`].
    pub fn is_current(&self) -> Result<bool, Error> {
        Ok(Header::read(self.map.source())? == self.header)
    }

    /// The snapshot that it serves.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// What it reads where the image refers to its backing file.
    pub fn backing(&self) -> Option<&Rc<dyn Source>> {
        self.backing.as_ref()
    }

    /// What encrypts its clusters.
    pub(super) fn cipher(&self) -> Option<&Rc<dyn Cipher>> {
        self.cipher.as_ref()
    }

    /// Its tables.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// What the operator should know about serving this image: one line each.
    pub fn warnings(&self) -> Vec<String> {
        if self.header.has(features::CORRUPT) {
            vec!["the image is marked as corrupt: what it serves may be wrong ('qemu-img check' says more)".into()]
        } else {
            Vec::new()
        }
    }

    fn read_into(&self, offset: u64, length: u64, into: &mut Target) -> Result<(), Error> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Error::image(format!(
                "a read of {length} bytes at {offset} is not within the disk, which has {}",
                self.size
            )));
        }
        self.map.each_run(offset, length, |at, run| {
            let here = offset + at;
            match run.place {
                Place::Zero => into.zero(at, run.length),
                Place::Unallocated => self.read_backing(here, run.length, into, at),
                Place::Data(host) => self.read_data(host, run.length, here, into, at),
                Place::Compressed(packed) => {
                    let skip = here % self.header.cluster_size();
                    let end = skip + run.length;
                    let cluster = self.packed.get(&**self.map.source(), packed, end, here)?;
                    into.put(at, &cluster[skip as usize..end as usize]);
                    Ok(())
                }
            }
        })
    }

    /// The backing file may be shorter. The disk reads as zero from there on.
    fn read_backing(&self, offset: u64, length: u64, into: &mut Target, at: u64) -> Result<(), Error> {
        let there = match &self.backing {
            None => 0,
            Some(backing) => {
                let there = backing.size().saturating_sub(offset).min(length);
                into.fill_from(&**backing, offset, there, at)?;
                there
            }
        };
        into.zero(at + there, length - there)
    }

    /// `length` bytes at `host` of the clusters, which are at `offset` of the disk.
    fn read_data(&self, host: u64, length: u64, offset: u64, into: &mut Target, at: u64) -> Result<(), Error> {
        let size = self.data.size();
        // The last cluster may not be there whole: what is behind the end was never written.
        let limit = size.checked_next_multiple_of(self.header.cluster_size()).unwrap_or(u64::MAX);
        if host + length > limit {
            let first = host.max(limit);
            let what = if self.header.has(features::EXTERNAL_DATA) { "data file" } else { "image" };
            return Err(Error::image(format!(
                "the cluster for {} is at {first}, and the {what} ends after {size} bytes",
                offset + (first - host)
            )));
        }
        let there = size.saturating_sub(host).min(length);
        match &self.cipher {
            None => into.fill_from(&*self.data, host, there, at)?,
            Some(cipher) => self.decrypt(&**cipher, host, there, offset, into, at)?,
        }
        into.zero(at + there, length - there)
    }

    /// Reads whole sectors, and decrypts them in the host.
    fn decrypt(
        &self,
        cipher: &dyn Cipher,
        host: u64,
        length: u64,
        offset: u64,
        into: &mut Target,
        at: u64,
    ) -> Result<(), Error> {
        if let Target::Buffer { buffer, at: base } = into
            && host.is_multiple_of(SECTOR)
            && length.is_multiple_of(SECTOR)
        {
            let at = *base + at as u32;
            self.data.read_buffer(host, length as u32, buffer, at)?;
            return Ok(cipher.decrypt(buffer, at, length as u32, host, offset)?);
        }
        let mut done = 0;
        while done < length {
            let skip = (host + done) % SECTOR;
            let n = (length - done).min(PIECE - skip);
            let sectors = (skip + n).next_multiple_of(SECTOR);
            let start = host + done - skip;
            let buffer = Buffer::new(sectors as u32)?;
            let there = self.data.size().saturating_sub(start).min(sectors);
            self.data.read_buffer(start, there as u32, &buffer, 0)?;
            cipher.decrypt(&buffer, 0, sectors as u32, start, offset + done - skip)?;
            into.copy(at + done, &buffer, skip as u32, n as u32);
            done += n;
        }
        Ok(())
    }
}

impl Source for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.read_into(offset, into.len() as u64, &mut Target::Guest(into))
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.read_into(offset, length.into(), &mut Target::Buffer { buffer, at })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        let start = list.at();
        for _ in 0..MOST_RUNS {
            if list.is_full() {
                break;
            }
            let at = list.at();
            let run = match self.map.run(at, list.left()) {
                Ok(run) => run,
                // What precedes the wrong entry is known.
                Err(Error::Image(_)) if at > start => break,
                Err(error) => return Err(error),
            };
            match (run.place, &self.backing) {
                (Place::Zero, _) => list.push_zero(run.length),
                (Place::Data(_) | Place::Compressed(_), _) => list.push_data(run.length),
                (Place::Unallocated, Some(backing)) if at < backing.size() => {
                    let there = run.length.min(backing.size() - at);
                    list.push_from(&**backing, at, there)?;
                    if list.at() == at {
                        list.push_data(there);
                    }
                }
                (Place::Unallocated, _) => list.push_hole(run.length),
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        for _ in 0..MOST_RUNS {
            if at >= end {
                break;
            }
            let run = self.map.run(at, end - at)?;
            let within = |source: &Rc<dyn Source>, from: u64, length: u64| {
                source.cache(from, length.min(source.size().saturating_sub(from)))
            };
            match (run.place, &self.backing) {
                (Place::Data(host), _) if host < self.data.size() => within(&self.data, host, run.length)?,
                (Place::Compressed(packed), _) if packed.offset < self.map.source().size() => {
                    within(self.map.source(), packed.offset, packed.length.into())?;
                }
                (Place::Unallocated, Some(backing)) if at < backing.size() => within(backing, at, run.length)?,
                _ => {}
            }
            at += run.length;
        }
        Ok(())
    }

    fn description(&self) -> Option<String> {
        let mut text = format!("qcow2 version {}", self.header.version);
        if let Some(snapshot) = &self.snapshot {
            text.push_str(&format!(", snapshot {}", snapshot.label()));
        }
        Some(text)
    }
}

/// The header of LUKS, with its key material.
fn luks_header(header: &Header, source: &Rc<dyn Source>) -> Result<Rc<dyn Source>, Error> {
    let Some((offset, length)) = header.luks else {
        return Err(Error::image("the image is encrypted with LUKS, and does not say where the header of LUKS is"));
    };
    let place = Part::new(Rc::clone(source), offset, length);
    Ok(Rc::new(place.map_err(|_| {
        Error::image(format!(
            "the header of LUKS has {length} bytes at {offset}, and the image ends after {}",
            source.size()
        ))
    })?))
}

/// Whether the options are those that the image needs.
fn check_options(header: &Header, options: &Options) -> Result<(), Error> {
    let refuse = |line: String| Err(Error::Image(line));
    match (&header.backing, &options.backing) {
        _ if options.base.is_some() => {}
        (Some(name), None) => {
            let format = match &header.backing_format {
                Some(format) => format!(" of the format {}", quoted(format)),
                None => String::new(),
            };
            return refuse(format!(
                "the image names the backing file {}{format}, and names in an image are not followed: give the disk \
                 with qcow2-backing=",
                quoted(name)
            ));
        }
        (None, Some(_)) => {
            return refuse("qcow2-backing= is given, and the image has no backing file".into());
        }
        _ => {}
    }
    match (header.has(features::EXTERNAL_DATA), &options.data) {
        (true, None) => {
            let name = match &header.data_file {
                Some(name) => format!("names the data file {}, and names in an image are not followed", quoted(name)),
                None => "has its data in another file, which it does not name".to_string(),
            };
            return refuse(format!("the image {name}: give the disk with qcow2-data="));
        }
        (false, Some(_)) => return refuse("qcow2-data= is given, and the image has no data file".into()),
        _ => {}
    }
    match (header.encryption, &options.unlock) {
        (Encryption::Aes, _) => refuse(
            "the image is encrypted with the AES of qcow2's first version, which is not safe and is not supported: \
             'qemu-img convert' makes an image with LUKS of it"
                .into(),
        ),
        (Encryption::Luks, None) => {
            refuse("the image is encrypted with LUKS: give the passphrase with qcow2-passphrase=".into())
        }
        (Encryption::None, Some(_)) => refuse("qcow2-passphrase= is given, and the image is not encrypted".into()),
        _ => Ok(()),
    }
}

/// Where a read goes.
enum Target<'a> {
    Guest(&'a mut [u8]),
    Buffer { buffer: &'a Bytes, at: u32 },
}

impl Target<'_> {
    fn zero(&mut self, at: u64, length: u64) -> Result<(), Error> {
        match self {
            Target::Guest(bytes) => bytes[at as usize..(at + length) as usize].fill(0),
            Target::Buffer { .. } if length == 0 => {}
            Target::Buffer { buffer, at: base } => {
                let start = *base + at as u32;
                buffer.fill(start..start + length as u32, 0);
            }
        }
        Ok(())
    }

    fn fill_from(&mut self, source: &dyn Source, from: u64, length: u64, at: u64) -> Result<(), Error> {
        match self {
            _ if length == 0 => Ok(()),
            Target::Guest(bytes) => source.read(from, &mut bytes[at as usize..(at + length) as usize]),
            Target::Buffer { buffer, at: base } => source.read_buffer(from, length as u32, buffer, *base + at as u32),
        }
    }

    fn put(&mut self, at: u64, data: &[u8]) {
        match self {
            Target::Guest(bytes) => bytes[at as usize..at as usize + data.len()].copy_from_slice(data),
            Target::Buffer { buffer, at: base } => buffer.write(*base + at as u32, data),
        }
    }

    fn copy(&mut self, at: u64, from: &Bytes, skip: u32, length: u32) {
        match self {
            Target::Guest(bytes) => {
                bytes[at as usize..][..length as usize].copy_from_slice(&from.read(skip..skip + length));
            }
            Target::Buffer { buffer, at: base } => buffer.copy(*base + at as u32, from, skip..skip + length),
        }
    }
}
