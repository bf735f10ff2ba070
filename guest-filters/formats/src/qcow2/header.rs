//! The header of an image, and the extensions that follow it.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, BlockCache, Error, Fields, Source};

use super::features::{self, Name};
use super::layout::Layout;

/// The first four bytes of every image.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";

/// The length of a header of version 2, and the least length of one of version 3.
const LENGTH: [usize; 2] = [72, 104];

/// qemu's bounds, which its own images keep: of the L1 table in bytes (it then maps 2 TiB with
/// clusters of 4 KiB, and 2 PiB with those of 64 KiB on) and of the number of snapshots.
pub(super) const MAX_L1: u64 = 32 << 20;
const MAX_SNAPSHOTS: u32 = 65536;

/// The longest name of a backing file and of its format.
pub(super) const MAX_BACKING_NAME: u32 = 1023;
pub(super) const MAX_BACKING_FORMAT: u32 = 15;
/// A name of a data file has no bound of the format's. Linux's longest path is 4096 bytes.
const MAX_DATA_NAME: u32 = 4096;
/// An entry of the table of feature names.
const FEATURE_NAME: u32 = 48;
/// There are no more feature bits than this.
const MAX_FEATURES: u32 = 3 * 64;

/// A table in the image: where it is, and how many entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// In bytes from the start of the image.
    pub offset: u64,
    /// The number of entries; for the table of reference counts, of clusters.
    pub count: u32,
}

/// How clusters are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not.
    None,
    /// By the method of the first versions: AES in CBC mode, keyed with the passphrase itself.
    Aes,
    /// By LUKS.
    Luks,
    /// By a method that the format does not define.
    Unknown(u32),
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// With deflate, without the header of zlib.
    Zlib,
    /// With zstd.
    Zstd,
    /// By a method that the format does not define.
    Unknown(u8),
}

/// What the first cluster of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has two to this power bytes: 9 to 21.
    pub cluster_bits: u32,
    /// The size of the disk in bytes.
    pub size: u64,
    /// How clusters are encrypted.
    pub encryption: Encryption,
    /// The L1 table of the disk's current state.
    pub l1: Table,
    /// The table of reference counts. Its count is in clusters.
    pub refcounts: Table,
    /// A reference count has two to this power bits.
    pub refcount_order: u32,
    /// The table of snapshots.
    pub snapshots: Table,
    /// Feature bits: see [`features`].
    pub incompatible: u64,
    /// Feature bits that a reader may ignore.
    pub compatible: u64,
    /// Feature bits that a writer clears if it does not know them.
    pub autoclear: u64,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The length of the header in bytes. The extensions begin there.
    pub length: u32,
    /// The name of the backing file.
    pub backing: Option<Vec<u8>>,
    /// The format of the backing file.
    pub backing_format: Option<Vec<u8>>,
    /// The name of the file with the clusters.
    pub data_file: Option<Vec<u8>>,
    /// Where the header of LUKS is, and how long it is.
    pub luks: Option<(u64, u64)>,
    /// The image's table of feature names.
    pub names: Vec<Name>,
}

impl Header {
    /// Whether an image begins as one of this format.
    ///
    /// # Errors
    /// Those of the source.
    pub fn probe(source: &dyn Source) -> Result<bool, Error> {
        Ok(source.size() >= 4 && image::read(source, 0, 4)? == MAGIC)
    }

    /// Reads a header. What it says need not be something that this decoder supports:
    /// [`check`](Header::check) says that.
    ///
    /// # Errors
    /// Those of the source, and a line for what cannot be understood.
    pub fn read(source: &Rc<dyn Source>) -> Result<Header, Error> {
        // The header and its extensions need a few hundred bytes in most images, but may have 2
        // MiB.
        let cache = BlockCache::new(Rc::clone(source), 4096, 16384);
        let bytes = image::read(&**source, 0, source.size().min(112) as usize)?;
        let fields = Fields::big(&bytes, "the header");
        if fields.bytes(0, 4).ok() != Some(MAGIC) {
            return Err(Error::image("it is not a qcow2 image: it does not begin with 'QFI' and the byte 0xfb"));
        }
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(Error::image(format!("the image has version {version}, and versions 2 and 3 are supported")));
        }
        let at_least = LENGTH[version as usize - 2];
        fields.bytes(0, at_least)?;
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::image(format!(
                "the header says clusters of 2^{cluster_bits} bytes, and they have 2^9 to 2^21"
            )));
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: fields.u64(24)?,
            encryption: match fields.u32(32)? {
                0 => Encryption::None,
                1 => Encryption::Aes,
                2 => Encryption::Luks,
                other => Encryption::Unknown(other),
            },
            l1: Table { offset: fields.u64(40)?, count: fields.u32(36)? },
            refcounts: Table { offset: fields.u64(48)?, count: fields.u32(56)? },
            refcount_order: 4,
            snapshots: Table { offset: fields.u64(64)?, count: fields.u32(60)? },
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            compression: Compression::Zlib,
            length: at_least as u32,
            backing: None,
            backing_format: None,
            data_file: None,
            luks: None,
            names: Vec::new(),
        };
        if version >= 3 {
            header.read_version_3(&fields)?;
        }
        let backing = (fields.u64(8)?, fields.u32(16)?);
        header.read_extensions(&cache, backing.0)?;
        header.read_backing(&cache, backing)?;
        Ok(header)
    }

    fn read_version_3(&mut self, fields: &Fields) -> Result<(), Error> {
        (self.incompatible, self.compatible, self.autoclear) = (fields.u64(72)?, fields.u64(80)?, fields.u64(88)?);
        self.refcount_order = fields.u32(96)?;
        self.length = fields.u32(100)?;
        if u64::from(self.length) < LENGTH[1] as u64 || u64::from(self.length) > self.cluster_size() {
            return Err(Error::image(format!(
                "the header says that it has {} bytes, and it has 104 to {}, the size of a cluster",
                self.length,
                self.cluster_size()
            )));
        }
        if self.length > 104 {
            self.compression = match fields.u8(104)? {
                0 => Compression::Zlib,
                1 => Compression::Zstd,
                other => Compression::Unknown(other),
            };
        }
        Ok(())
    }

    /// The extensions lie between the header and the name of the backing file, or the end of the
    /// cluster.
    fn read_extensions(&mut self, cache: &BlockCache, backing: u64) -> Result<(), Error> {
        let end = if backing == 0 { self.cluster_size() } else { backing.min(self.cluster_size()) };
        let mut at = u64::from(self.length);
        // The space after the last one may be too short for an end mark, or the image be.
        while at + 8 <= end.min(cache.source().size()) {
            let head = cache.array::<8>(at)?;
            let fields = Fields::big(&head, "an extension");
            let (kind, length) = (fields.u32(0)?, fields.u32(4)?);
            if kind == 0 {
                break;
            }
            at += 8;
            if u64::from(length) > end - at {
                return Err(Error::image(format!(
                    "the header extension 0x{kind:08x} has {length} bytes at {at}, and must end before {end}"
                )));
            }
            self.read_extension(cache, kind, at, length)?;
            at += u64::from(length).next_multiple_of(8);
        }
        Ok(())
    }

    fn read_extension(&mut self, cache: &BlockCache, kind: u32, at: u64, length: u32) -> Result<(), Error> {
        let read = |length: u32, most: u32, what: &str| {
            if length > most {
                return Err(Error::image(format!("{what} has {length} bytes, and {most} is the most")));
            }
            let mut bytes = vec![0; length as usize];
            cache.read(at, &mut bytes)?;
            Ok(bytes)
        };
        match kind {
            0xe279_2aca => {
                self.backing_format = Some(read(length, MAX_BACKING_FORMAT, "the name of the backing file's format")?);
            }
            0x4441_5441 => self.data_file = Some(read(length, MAX_DATA_NAME, "the name of the data file")?),
            0x6803_f857 => {
                let length = length.min(MAX_FEATURES * FEATURE_NAME);
                let names = read(length, length, "the table of feature names")?;
                self.names = names.chunks_exact(FEATURE_NAME as usize).map(name_of_feature).collect();
            }
            0x0537_be77 => {
                let place = cache.array::<16>(at)?;
                let fields = Fields::big(&place, "the place of the LUKS header");
                self.luks = Some((fields.u64(0)?, fields.u64(8)?));
            }
            // Dirty bitmaps, and what a reader may ignore.
            _ => {}
        }
        Ok(())
    }

    fn read_backing(&mut self, cache: &BlockCache, (at, length): (u64, u32)) -> Result<(), Error> {
        if at == 0 || length == 0 {
            return Ok(());
        }
        let is_inside = at.checked_add(length.into()).is_some_and(|end| end <= self.cluster_size());
        if length > MAX_BACKING_NAME || !is_inside {
            return Err(Error::image(format!(
                "the name of the backing file has {length} bytes at {at}, and must have at most \
                 {MAX_BACKING_NAME} and end before {}",
                self.cluster_size()
            )));
        }
        let mut name = vec![0; length as usize];
        cache.read(at, &mut name)?;
        self.backing = Some(name);
        Ok(())
    }

    /// The size of a cluster in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether an incompatible feature bit is set.
    pub fn has(&self, bit: u64) -> bool {
        self.incompatible & bit != 0
    }

    /// How the tables of the image look.
    pub fn layout(&self) -> Layout {
        Layout::new(self.version, self.cluster_bits, self.has(features::EXTENDED_L2), self.has(features::EXTERNAL_DATA))
    }

    /// Whether this decoder can serve such an image, whose tables are in `source`.
    ///
    /// # Errors
    /// A line that says what is not supported, or cannot be right.
    pub fn check(&self, source: &dyn Source) -> Result<(), Error> {
        let refuse = |line: String| Err(Error::Image(line));
        let unknown = features::unknown(self.incompatible, &self.names);
        if let [first, ..] = &unknown[..] {
            return refuse(format!("the image needs a feature that is not supported: {first}"));
        }
        match self.compression {
            Compression::Unknown(kind) => {
                return refuse(format!(
                    "the image has clusters of compression type {kind}: 0 (zlib) and 1 (zstd) are supported"
                ));
            }
            kind => {
                let is_zstd = kind == Compression::Zstd;
                if is_zstd != self.has(features::COMPRESSION_TYPE) {
                    let (name, bit) = if is_zstd { ("zstd", "not set") } else { ("zlib", "set") };
                    return refuse(format!(
                        "the header says compression type {name}, and the feature bit for it is {bit}"
                    ));
                }
            }
        }
        if self.has(features::EXTENDED_L2) && self.cluster_bits < 14 {
            return refuse(format!(
                "the image has extended L2 entries and clusters of {} bytes, and needs 16384 at least",
                self.cluster_size()
            ));
        }
        if self.refcount_order > 6 {
            return refuse(format!("the header says refcounts of 2^{} bits, and 2^6 is the most", self.refcount_order));
        }
        if let Encryption::Unknown(method) = self.encryption {
            return refuse(format!("the image is encrypted by method {method}, which the format does not define"));
        }
        if self.size > i64::MAX as u64 {
            return refuse(format!("the header says a disk of {} bytes, and 2^63 - 1 is the most", self.size));
        }
        if self.snapshots.count > MAX_SNAPSHOTS {
            return refuse(format!(
                "the header says {} snapshots, and {MAX_SNAPSHOTS} is the most",
                self.snapshots.count
            ));
        }
        self.check_l1(source, self.l1, self.size, "the L1 table")
    }

    /// Whether an L1 table can be one, and maps `size` bytes.
    ///
    /// # Errors
    /// A line that says what is wrong. `what` names the table in it.
    pub fn check_l1(&self, source: &dyn Source, l1: Table, size: u64, what: &str) -> Result<(), Error> {
        let refuse = |line: String| Err(Error::Image(line));
        let bytes = u64::from(l1.count) * 8;
        if bytes > MAX_L1 {
            return refuse(format!("{what} has {} entries, and {} is the most", l1.count, MAX_L1 / 8));
        }
        if !l1.offset.is_multiple_of(self.cluster_size()) {
            return refuse(format!("{what} is at {}, which is not a multiple of a cluster's size", l1.offset));
        }
        if l1.offset.checked_add(bytes).is_none_or(|end| end > source.size()) {
            return refuse(format!(
                "{what} has {bytes} bytes at {}, and the image ends after {}",
                l1.offset,
                source.size()
            ));
        }
        let mapped = u128::from(l1.count) << self.layout().table_shift();
        if mapped < u128::from(size) {
            return refuse(format!("{what} maps {mapped} bytes, and the disk has {size}"));
        }
        Ok(())
    }
}

fn name_of_feature(entry: &[u8]) -> Name {
    let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
    Name { word: entry[0], bit: entry[1], name: name.to_vec() }
}
