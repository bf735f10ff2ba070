//! Sparse files: a directory has the place of each table, a table the place of each grain.
//!
//! VMware's products on a desktop write files that begin with `KDMV`, ESX such that begin with
//! `COWD`. All numbers are little-endian, and places are in sectors. Grains of a `KDMV` file may be
//! compressed. Then a marker before each says which grain it is, and how long.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, Source, TableCache, read};

use crate::block_map::{BlockMap, BlockPlace, MappedImage, check_block, check_table};
use crate::codec::{Deflated, inflate};

pub(super) const HOSTED: &[u8; 4] = b"KDMV";
pub(super) const COWD: &[u8; 4] = b"COWD";

const SECTOR: u64 = 512;

/// A disk has fewer than 2^63 bytes.
pub(super) const MAX_SECTORS: u64 = i64::MAX as u64 / SECTOR;

/// The place of the directory in a file whose header was written before the directory: a second
/// header, the footer, has it.
const IN_FOOTER: u64 = u64::MAX;

/// Footer and marker of the end have three sectors together.
const FOOTER: u64 = 3 * SECTOR;

const MARKER_END: u32 = 0;
const MARKER_FOOTER: u32 = 3;

/// The header's flags.
const CHECKS_LINES: u32 = 1;
const HAS_ZERO_GRAINS: u32 = 1 << 2;
const HAS_MARKERS: u32 = 1 << 17;

/// The largest grain in sectors: 1 GiB, as in qemu. VMware's products make 64 KiB.
const MAX_GRAIN: u64 = 1 << 21;
/// The largest compressed grain in sectors: 1 MiB. It is unpacked in the guest's memory.
const MAX_PACKED_GRAIN: u64 = 2048;

/// How many bytes of unpacked grains an open file keeps.
const PACKED_CACHE: usize = 4 << 20;

/// What the header of a sparse file says.
#[derive(Clone, Debug)]
pub(super) struct SparseHeader {
    pub(super) version: u32,
    /// Sectors of the disk.
    pub(super) capacity: u64,
    /// Sectors of a grain.
    pub(super) grain: u64,
    /// Entries of a table.
    entries: u64,
    /// The directory's place.
    directory: u64,
    has_zero_grains: bool,
    pub(super) is_packed: bool,
    has_markers: bool,
    pub(super) is_unclean: bool,
    /// Place and length of the descriptor in it, in sectors. The length is 0 if there is none.
    pub(super) descriptor: (u64, u64),
    /// The parent's name in a file of ESX.
    pub(super) parent: Option<Vec<u8>>,
}

impl SparseHeader {
    /// Reads the header at the start of a file, or the footer that it names.
    ///
    /// # Errors
    /// Those of the source. A line if it is wrong.
    pub(super) fn read(below: &dyn Source) -> Result<SparseHeader, Error> {
        let mut magic = [0; 4];
        if below.size() >= SECTOR {
            below.read(0, &mut magic)?;
        }
        match &magic {
            COWD => SparseHeader::cowd(&read(below, 0, 2 * SECTOR as usize)?),
            HOSTED => {
                let header = SparseHeader::hosted(&read(below, 0, SECTOR as usize)?, "the header")?;
                if header.directory != IN_FOOTER {
                    return Ok(header);
                }
                let footer = SparseHeader::footer(below)?;
                // The footer's place of the descriptor is that of the header.
                Ok(SparseHeader { descriptor: header.descriptor, ..footer })
            }
            _ => Err(Error::image("this is no sparse VMDK file: it does not begin with KDMV or COWD")),
        }
    }

    fn hosted(bytes: &[u8], what: &str) -> Result<SparseHeader, Error> {
        let fields = Fields::little(bytes, what);
        let flags = fields.u32(8)?;
        let version = fields.u32(4)?;
        if !(1..=3).contains(&version) {
            return Err(Error::image(format!("version {version} of sparse VMDK files is not supported: 1 to 3 are")));
        }
        if flags & CHECKS_LINES > 0 && fields.bytes(73, 4)? != b"\n \r\n" {
            return Err(Error::image(format!("{what} is damaged: a program has changed the ends of its lines")));
        }
        let method = fields.u16(77)?;
        if method > 1 {
            return Err(Error::image(format!(
                "{what} has compression method {method}: 0, none, and 1, deflate, exist"
            )));
        }
        Ok(SparseHeader {
            version,
            capacity: fields.u64(12)?,
            grain: fields.u64(20)?,
            descriptor: (fields.u64(28)?, fields.u64(36)?),
            entries: fields.u32(44)?.into(),
            directory: fields.u64(56)?,
            is_unclean: fields.u8(72)? != 0,
            has_zero_grains: flags & HAS_ZERO_GRAINS > 0,
            is_packed: method == 1,
            has_markers: flags & HAS_MARKERS > 0,
            parent: None,
        })
    }

    /// The header near the end of a file, between two markers.
    fn footer(below: &dyn Source) -> Result<SparseHeader, Error> {
        let size = below.size();
        let wrong = |what: &str| Error::image(format!("the file has its directory at the end, and {what}"));
        if size < SECTOR + FOOTER {
            return Err(wrong("no footer: it was cut"));
        }
        let bytes = read(below, size - FOOTER, FOOTER as usize)?;
        let fields = Fields::little(&bytes, "the footer");
        let footer_at = SECTOR as usize;
        let is_footer = fields.u32(8)? == 0 && fields.u32(12)? == MARKER_FOOTER;
        let is_end = fields.u64(1024)? == 0 && fields.u32(1032)? == 0 && fields.u32(1036)? == MARKER_END;
        if !is_footer || !is_end || fields.bytes(footer_at, 4)? != HOSTED {
            return Err(wrong("does not end with a footer: it was cut, or something was appended"));
        }
        let footer = SparseHeader::hosted(fields.bytes(footer_at, SECTOR as usize)?, "the footer")?;
        if footer.directory == IN_FOOTER {
            return Err(wrong("its footer says so again"));
        }
        Ok(footer)
    }

    fn cowd(bytes: &[u8]) -> Result<SparseHeader, Error> {
        /// Tables of ESX have so many entries.
        const ENTRIES: u64 = 4096;
        let fields = Fields::little(bytes, "the header");
        let version = fields.u32(4)?;
        if version != 1 {
            return Err(Error::image(format!("version {version} of COWD files is not supported: 1 is")));
        }
        let (capacity, grain) = (u64::from(fields.u32(12)?), u64::from(fields.u32(16)?));
        let tables: u64 = fields.u32(24)?.into();
        let needed = capacity.div_ceil(grain.max(1) * ENTRIES);
        if tables < needed {
            return Err(Error::image(format!("the directory has {tables} entries, and the disk needs {needed}")));
        }
        // A file without a parent has three numbers there, the disk's geometry.
        let parent = fields.text(32, 992)?;
        let is_name = parent.len() >= 4 && !parent.iter().any(u8::is_ascii_control);
        Ok(SparseHeader {
            version,
            capacity,
            grain,
            descriptor: (0, 0),
            entries: ENTRIES,
            directory: fields.u32(20)?.into(),
            is_unclean: false,
            has_zero_grains: false,
            is_packed: false,
            has_markers: false,
            parent: is_name.then(|| parent.to_vec()),
        })
    }

    /// Whether the file has only a descriptor, and its extents are elsewhere.
    pub(super) fn is_only_descriptor(&self) -> bool {
        self.capacity == 0 && self.descriptor.1 > 0
    }

    /// # Errors
    /// A line that says what is wrong.
    pub(super) fn check(&self, below: &dyn Source) -> Result<(), Error> {
        let fail = |line: String| Err(Error::Image(line));
        if self.capacity > MAX_SECTORS {
            return fail(format!("the disk has {} sectors, and at most {MAX_SECTORS} are possible", self.capacity));
        }
        let most = if self.is_packed { MAX_PACKED_GRAIN } else { MAX_GRAIN };
        if !self.grain.is_power_of_two() || self.grain > most {
            let packed = if self.is_packed { "compressed " } else { "" };
            return fail(format!(
                "{packed}grains of {} sectors are not supported: a power of two up to {most} is",
                self.grain
            ));
        }
        if self.entries == 0 || self.entries > 4096 {
            return fail(format!("tables of {} entries are not supported: 1 to 4096 are", self.entries));
        }
        if self.directory == 0 {
            return fail("the file has no grain directory".into());
        }
        let tables = self.capacity.div_ceil(self.grain * self.entries);
        let Some(at) = self.directory.checked_mul(SECTOR) else {
            return fail(format!("the grain directory is at sector {}, beyond 2^64 bytes", self.directory));
        };
        check_table(below, "the grain directory", at, tables * 4)
    }
}

/// Where the grains of a sparse file are.
pub(super) struct Grains {
    header: SparseHeader,
    tables: BlockCache,
    unpacked: TableCache<u64, Vec<u8>>,
    parent: Option<(Rc<dyn Source>, u64)>,
}

/// Opens a sparse file. The disk's other files share the memory for tables with it: `files` is the
/// number of them all.
///
/// # Errors
/// A line if the header is wrong.
pub(super) fn open(
    below: Rc<dyn Source>,
    header: SparseHeader,
    parent: Option<(Rc<dyn Source>, u64)>,
    files: usize,
) -> Result<MappedImage<Grains>, Error> {
    header.check(&*below)?;
    let tables = if files <= 1 {
        crate::block_map::table_cache(&below)
    } else {
        // The least is 8 KiB, four tables of 512 entries.
        BlockCache::new(below, 2048, ((512 << 10) / files as u32).max(8192))
    };
    let unpacked = TableCache::new(PACKED_CACHE / files.max(1));
    Ok(MappedImage(Grains { header, tables, unpacked, parent }))
}

/// What a table says of a grain.
enum Grain {
    /// It has no table: nothing of what that would describe is there.
    NoTable,
    Absent,
    Zero,
    /// In bytes.
    At(u64),
}

impl Grains {
    /// # Errors
    /// A line if table or grain are beyond the end.
    fn look_up(&self, grain: u64) -> Result<Grain, Error> {
        let (table, entry) = (grain / self.header.entries, grain % self.header.entries);
        let file = self.stored_in();
        // `check` has seen that the directory is within the file.
        let at = u32::from_le_bytes(self.tables.array(self.header.directory * SECTOR + table * 4)?);
        if at == 0 {
            return Ok(Grain::NoTable);
        }
        let at = u64::from(at) * SECTOR;
        check_block(file, || format!("grain table {table}"), at)?;
        let at = u64::from(u32::from_le_bytes(self.tables.array(at + entry * 4)?));
        match at {
            0 => Ok(Grain::Absent),
            1 if self.header.has_zero_grains => Ok(Grain::Zero),
            at => {
                let at = at * SECTOR;
                check_block(file, || format!("grain {grain}"), at)?;
                Ok(Grain::At(at))
            }
        }
    }

    fn grain_bytes(&self) -> u64 {
        self.header.grain * SECTOR
    }

    /// Reads and inflates the grain at `at`.
    ///
    /// # Errors
    /// A line if marker or data are wrong.
    fn unpack(&self, grain: u64, at: u64) -> Result<Vec<u8>, Error> {
        let size = self.grain_bytes();
        let file = self.stored_in();
        let wrong = |what: String| Error::image(format!("grain {grain} at {at} {what}"));
        // Deflated data is never much larger. Twice as much is what qemu accepts.
        let most = 2 * size;
        let (data_at, length) = if self.header.has_markers {
            let marker: [u8; 12] = self.tables.array(at)?;
            let fields = Fields::little(&marker, "a marker");
            let (sector, length) = (fields.u64(0)?, u64::from(fields.u32(8)?));
            let own = grain * self.header.grain;
            if sector != own {
                return Err(wrong(format!(
                    "has the marker of sector {sector}, and begins at sector {own} of the disk"
                )));
            }
            if length == 0 || length > most {
                return Err(wrong(format!("has {length} bytes of compressed data: 1 to {most} are possible")));
            }
            (at + 12, length)
        } else {
            (at, most.min(file.size() - at))
        };
        let packed = read(file, data_at, length as usize)?;
        // One more byte shows whether the data gives more than a grain.
        let mut data = vec![0; size as usize + 1];
        let got = inflate(Deflated::Zlib, &packed, &mut data).map_err(|error| match error {
            Error::Image(line) => wrong(format!("cannot be unpacked: {line}")),
            failed => failed,
        })? as u64;
        if got > size {
            return Err(wrong(format!("gives more than the {size} bytes of a grain")));
        }
        let needed = size.min(self.size() - grain * size);
        if got < needed {
            return Err(wrong(format!("gives {got} bytes, and {needed} are needed")));
        }
        data.truncate(got as usize);
        Ok(data)
    }
}

impl BlockMap for Grains {
    fn size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn stored_in(&self) -> &dyn Source {
        &**self.tables.source()
    }

    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let size = self.grain_bytes();
        let (grain, within) = (offset / size, offset % size);
        let left = size - within;
        Ok(match self.look_up(grain)? {
            Grain::NoTable => {
                let entries = self.header.entries;
                (BlockPlace::Absent, left + (entries - 1 - grain % entries) * size)
            }
            Grain::Absent => (BlockPlace::Absent, left),
            Grain::Zero => (BlockPlace::Zero, left),
            Grain::At(_) if self.header.is_packed => (BlockPlace::Packed, left.min(self.size() - offset)),
            Grain::At(at) => (BlockPlace::Stored(at + within), left),
        })
    }

    fn unpacked(&self, offset: u64) -> Result<(Rc<Vec<u8>>, usize), Error> {
        let size = self.grain_bytes();
        let grain = offset / size;
        let Grain::At(at) = self.look_up(grain)? else {
            return Err(Error::image(format!("grain {grain} changed while it was read")));
        };
        let data = self.unpacked.get_or(grain, || {
            let data = self.unpack(grain, at)?;
            let weight = data.capacity();
            Ok::<_, Error>((data, weight))
        })?;
        Ok((data, (offset % size) as usize))
    }

    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        self.parent.as_ref()
    }

    fn description(&self) -> Option<String> {
        None
    }
}
