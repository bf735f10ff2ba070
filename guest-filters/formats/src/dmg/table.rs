//! Tables of chunks, which begin with the signature mish, and the index of all chunks.
//!
//! A table describes a range of the disk, which is a partition in most images. Its bytes come in
//! pieces, and each chunk is checked as soon as its bytes are there. Only chunks with data are
//! kept: what none of them has reads as zero.

use rbdkit_filter_sdk::image::{Error, Fields};

use super::trailer::{Area, Koly, SECTOR};

/// At most so many chunks with data, of 24 bytes each in the guest's memory: 12 MiB. They hold 512
/// GiB in chunks of 1 MiB.
pub(super) const MOST_CHUNKS: usize = 1 << 19;

/// At most so many chunks of all kinds. Those without data take no memory, but time.
const MOST_LISTED: u32 = 2 << 19;

/// At most so many tables.
const MOST_TABLES: usize = 4096;

/// A compressed chunk has at most so many sectors: 8 MiB. Programs make 256 KiB to 1 MiB.
pub(super) const MAX_PACKED: u64 = 16 << 10;

/// Bytes of a table before its chunks, and of a chunk in it.
const HEAD: usize = 204;
const ENTRY: usize = 40;

const MISH: [u8; 4] = *b"mish";

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Raw,
    Adc,
    Zlib,
    Bzip2,
    Lzfse,
    Xz,
}

/// The codings in the order of their numbers.
const CODINGS: [Coding; 6] = [Coding::Raw, Coding::Adc, Coding::Zlib, Coding::Bzip2, Coding::Lzfse, Coding::Xz];

/// What a number in a table says that a chunk is.
enum Type {
    Data(Coding),
    Zero,
    Comment,
    Terminator,
}

impl Type {
    fn of(number: u32) -> Option<Type> {
        Some(match number {
            0 | 2 => Type::Zero,
            1 => Type::Data(Coding::Raw),
            0x8000_0004 => Type::Data(Coding::Adc),
            0x8000_0005 => Type::Data(Coding::Zlib),
            0x8000_0006 => Type::Data(Coding::Bzip2),
            0x8000_0007 => Type::Data(Coding::Lzfse),
            0x8000_0008 => Type::Data(Coding::Xz),
            0x7fff_fffe => Type::Comment,
            0xffff_ffff => Type::Terminator,
            _ => return None,
        })
    }
}

/// A chunk with data. Its first sector has fewer than 56 bits, so its coding stands above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    first: u64,
    /// Where its data is in the file.
    pub at: u64,
    sectors: u32,
    /// Bytes that it takes there. Of a chunk that is stored as it is they follow from its sectors.
    pub length: u32,
}

const FIRST_BITS: u32 = 56;

impl Chunk {
    fn new(coding: Coding, first: u64, sectors: u32, at: u64, length: u32) -> Chunk {
        Chunk { first: (coding as u64) << FIRST_BITS | first, at, sectors, length }
    }

    pub(super) fn coding(&self) -> Coding {
        CODINGS[(self.first >> FIRST_BITS) as usize % CODINGS.len()]
    }

    /// The first byte of the disk that it has.
    pub(super) fn start(&self) -> u64 {
        (self.first & ((1 << FIRST_BITS) - 1)) * SECTOR
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
}

/// The chunks of an image.
#[derive(Default)]
pub(super) struct Index {
    pub chunks: Vec<Chunk>,
    tables: Vec<Area>,
    /// Chunks that the tables so far say.
    listed: u32,
    /// The largest compressed chunk in bytes of the disk.
    pub largest: u64,
}

impl Index {
    /// Puts the tables into the order of the disk.
    ///
    /// # Errors
    /// A line if two tables overlap, or there is none.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        if self.tables.is_empty() {
            return Err(Error::image("the image has no table of chunks"));
        }
        self.tables.sort_unstable_by_key(|table| table.start);
        for pair in self.tables.windows(2) {
            if pair[0].end() > pair[1].start {
                return Err(Error::Image(format!(
                    "a table begins at sector {} of the disk, and another one ends at {}",
                    pair[1].start,
                    pair[0].end()
                )));
            }
        }
        // The chunks of each table are in order, and within it.
        self.chunks.sort_unstable_by_key(Chunk::start);
        self.chunks.shrink_to_fit();
        Ok(())
    }
}

/// Reads one table.
pub(super) struct TableReader<'a> {
    koly: &'a Koly,
    index: &'a mut Index,
    /// For messages, from 1 on.
    number: usize,
    /// What has come of the head or of the next chunk.
    part: Vec<u8>,
    head: Option<Head>,
    seen: u32,
    is_ended: bool,
    /// The first sector behind the chunks so far, from the start of the table on.
    next: u64,
}

/// What the table says before its chunks.
struct Head {
    /// Sectors of the disk.
    range: Area,
    /// What offsets of the chunks are counted from.
    data: u64,
    chunks: u32,
}

impl<'a> TableReader<'a> {
    /// # Errors
    /// A line if there are too many tables.
    pub(super) fn new(koly: &'a Koly, index: &'a mut Index) -> Result<TableReader<'a>, Error> {
        let number = index.tables.len() + 1;
        if number > MOST_TABLES {
            return Err(Error::Image(format!("the image has more than {MOST_TABLES} tables")));
        }
        Ok(TableReader { koly, index, number, part: Vec::new(), head: None, seen: 0, is_ended: false, next: 0 })
    }

    pub(super) fn wrong(&self, what: String) -> Error {
        Error::Image(format!("table {} {what}", self.number))
    }

    /// Takes the next bytes of the table.
    ///
    /// # Errors
    /// A line if they are wrong.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let size = if self.head.is_none() { HEAD } else { ENTRY };
            let taken = bytes.len().min(size - self.part.len());
            self.part.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.part.len() < size {
                break;
            }
            let part = std::mem::take(&mut self.part);
            match self.head {
                None => self.take_head(&part)?,
                Some(_) => self.take_chunk(&part)?,
            }
            self.part = part;
            self.part.clear();
        }
        Ok(())
    }

    /// # Errors
    /// A line if the table ended before its last chunk.
    pub(super) fn finish(self) -> Result<(), Error> {
        let Some(head) = &self.head else {
            return Err(self.wrong(format!("has {} bytes: a table begins with {HEAD}", self.part.len())));
        };
        if self.seen < head.chunks || !self.part.is_empty() {
            return Err(self.wrong(format!("says {} chunks, and ends after {}", head.chunks, self.seen)));
        }
        self.index.tables.push(head.range);
        Ok(())
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let fields = Fields::big(bytes, "a table");
        if fields.bytes(0, 4)? != MISH {
            return Err(self.wrong("does not begin with the signature mish".into()));
        }
        let version = fields.u32(4)?;
        if version != 1 {
            return Err(self.wrong(format!("has the version {version}, which is not supported: 1 is")));
        }
        let range = Area { start: fields.u64(8)?, length: fields.u64(16)? };
        let sectors = self.koly.sectors;
        if range.start.checked_add(range.length).is_none_or(|end| end > sectors) {
            return Err(self.wrong(format!(
                "has {} sectors from sector {} on, and the disk has {sectors}",
                range.length, range.start
            )));
        }
        let head = Head { range, data: fields.u64(24)?, chunks: fields.u32(200)? };
        self.index.listed = self.index.listed.saturating_add(head.chunks);
        if self.index.listed > MOST_LISTED {
            return Err(self.wrong(format!(
                "says {} chunks: at most {MOST_LISTED} are supported in all tables together",
                head.chunks
            )));
        }
        self.head = Some(head);
        Ok(())
    }

    fn take_chunk(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(head) = &self.head else { return Ok(()) };
        let number = self.seen;
        if number == head.chunks {
            return Err(self.wrong(format!("says {} chunks, and has more", head.chunks)));
        }
        let wrong = |what: String| self.wrong(format!("is wrong: chunk {number} {what}"));
        if self.is_ended {
            return Err(wrong("follows the terminator".into()));
        }
        let fields = Fields::big(bytes, "a chunk");
        let number = fields.u32(0)?;
        let (first, sectors) = (fields.u64(8)?, fields.u64(16)?);
        let (offset, length) = (fields.u64(24)?, fields.u64(32)?);
        let coding = match Type::of(number) {
            None => return Err(wrong(format!("has the type {number:#x}, which is not supported"))),
            Some(Type::Comment) => {
                self.seen += 1;
                return Ok(());
            }
            Some(Type::Terminator) => {
                (self.seen, self.is_ended) = (self.seen + 1, true);
                return Ok(());
            }
            Some(Type::Zero) => None,
            Some(Type::Data(coding)) => Some(coding),
        };
        if first < self.next {
            return Err(wrong(format!("begins at sector {first}, and the one before it ends at {}", self.next)));
        }
        let end = first.checked_add(sectors).filter(|end| *end <= head.range.length).ok_or_else(|| {
            wrong(format!("has {sectors} sectors from sector {first} on, and the table has {}", head.range.length))
        })?;
        let chunk = match coding {
            Some(coding) if sectors > 0 => {
                let (at, length) = self.place(coding, sectors, (head.data, offset), length).map_err(wrong)?;
                // `place` has bounded the sectors.
                Some(Chunk::new(coding, head.range.start + first, sectors as u32, at, length))
            }
            _ => None,
        };
        if let Some(chunk) = chunk {
            if self.index.chunks.len() == MOST_CHUNKS {
                return Err(Error::Image(format!("the image has more than {MOST_CHUNKS} chunks with data")));
            }
            if chunk.coding() != Coding::Raw {
                self.index.largest = self.index.largest.max(chunk.size());
            }
            self.index.chunks.push(chunk);
        }
        (self.seen, self.next) = (self.seen + 1, end);
        Ok(())
    }

    /// Where the data of a chunk is, and how many bytes it has.
    ///
    /// # Errors
    /// What is wrong with it.
    fn place(&self, coding: Coding, sectors: u64, offset: (u64, u64), length: u64) -> Result<(u64, u32), String> {
        if coding == Coding::Raw {
            if sectors > u32::MAX.into() {
                return Err(format!("has {sectors} sectors of raw data: at most {} are supported", u32::MAX));
            }
            if length != sectors * SECTOR {
                return Err(format!("has {length} bytes of raw data for {sectors} sectors"));
            }
        } else {
            if sectors > MAX_PACKED {
                return Err(format!("is compressed and has {sectors} sectors: at most {MAX_PACKED} are supported"));
            }
            // Compressed data is hardly larger than what it is made of.
            let most = sectors * SECTOR / 8 * 9 + 4096;
            if length == 0 || length > most {
                return Err(format!(
                    "has {length} bytes of compressed data for {sectors} sectors: 1 to {most} are possible"
                ));
            }
        }
        let stored = self.koly.stored();
        let at = stored.start.checked_add(offset.0).and_then(|at| at.checked_add(offset.1));
        let placed = at.and_then(|at| at.checked_add(length).filter(|end| *end <= stored.end()).map(|end| (at, end)));
        let Some((at, end)) = placed else {
            return Err(format!(
                "has {length} bytes at {} of the data from {} on, and the data from byte {} on has {}",
                offset.1, offset.0, stored.start, stored.length
            ));
        };
        for (area, what) in [(self.koly.list, "the property list"), (self.koly.fork, "the resource fork")] {
            if area.overlaps(at, end) {
                return Err(format!(
                    "has its data at {at}, and {what} is there, from {} to {}",
                    area.start,
                    area.end()
                ));
            }
        }
        Ok((at, if coding == Coding::Raw { 0 } else { length as u32 }))
    }
}
