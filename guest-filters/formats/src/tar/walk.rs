//! From header to header.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{self, Error, Source};

use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::sparse::{Run, old_map};

/// The walk gives up after this many headers. 1 million of them are read in a few seconds.
pub const MOST_HEADERS: u64 = 1_000_000;

/// An extended header and a long name have at most this many bytes.
const MOST_EXTENDED: u64 = 1 << 20;

/// The walk reads at least and at most so much at once, in bytes.
const WINDOW: (u64, u64) = (4 << 10, 64 << 10);

/// How far a walk goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Headers that begin at this offset, or beyond, are not read.
    pub bytes: u64,
    /// How many headers are read, extended ones included.
    pub headers: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: u64::MAX, headers: MOST_HEADERS }
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Directory,
    /// A device, a FIFO, a volume label, the rest of a file of another volume.
    Other,
}

/// A member as its headers describe it.
pub struct Member {
    /// Where its first header begins, which may be an extended one.
    pub header: u64,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    /// The size of the file, with its holes.
    pub size: u64,
    /// Where its bytes begin in the archive, and how many are stored.
    pub data: u64,
    pub stored: u64,
    pub holes: Holes,
}

/// Where the map of a member with holes is.
pub enum Holes {
    None,
    /// It was in the headers.
    Known(Vec<Run>),
    /// Before the data.
    BeforeData,
}

/// Reads headers one after the other.
pub struct Walk {
    below: Rc<dyn Source>,
    limits: Limits,
    /// Where the next header begins.
    at: u64,
    read: u64,
    window: Window,
}

/// Bytes of the archive that were read ahead, as many as were of use the last time.
struct Window {
    start: u64,
    bytes: Vec<u8>,
    length: u64,
    was_used: bool,
}

impl Walk {
    /// Begins at `at`, where a member's first header has to be.
    pub fn new(below: Rc<dyn Source>, at: u64, limits: Limits) -> Walk {
        let window = Window { start: 0, bytes: Vec::new(), length: WINDOW.0, was_used: false };
        Walk { below, limits, at, read: 0, window }
    }

    fn block(&mut self, at: u64) -> Result<Vec<u8>, Error> {
        let window = &mut self.window;
        let is_there = |window: &Window| {
            let skip = at.checked_sub(window.start)?;
            (skip + BLOCK <= window.bytes.len() as u64).then_some(skip as usize)
        };
        let skip = match is_there(window) {
            Some(skip) => {
                window.was_used = true;
                skip
            }
            None => {
                window.length = match window.was_used {
                    true => (window.length * 2).min(WINDOW.1),
                    false => WINDOW.0,
                };
                let length = window.length.min(self.below.size().saturating_sub(at)).max(BLOCK);
                window.bytes = image::read(&*self.below, at, length as usize)?;
                (window.start, window.was_used) = (at, false);
                0
            }
        };
        Ok(window.bytes[skip..skip + BLOCK as usize].to_vec())
    }

    /// The next header block, and None at the end of the archive.
    fn header(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        if self.below.size() < BLOCK {
            let size = self.below.size();
            return Err(Error::image(format!(
                "it is not a tar archive: it has {size} bytes, and a header has {BLOCK}"
            )));
        }
        if self.at >= self.below.size() {
            return Ok(None);
        }
        if self.at >= self.limits.bytes {
            return Err(Error::image(format!(
                "the first {} bytes of the archive do not have it, and tar-limit allows no more",
                self.limits.bytes
            )));
        }
        if self.read == self.limits.headers {
            return Err(Error::image(format!(
                "the first {} headers of the archive, up to offset {}, do not have it, and no more are read",
                self.read, self.at
            )));
        }
        self.read += 1;
        if self.below.size() - self.at < BLOCK {
            return Err(Error::image(format!(
                "the archive ends within a header: {} bytes are at {}, and a header has {BLOCK}",
                self.below.size() - self.at,
                self.at
            )));
        }
        let block = self.block(self.at)?;
        Ok(Header::parse(&block, self.at)?.map(|header| (header, block)))
    }

    /// The offset after `size` bytes of data from `self.at + BLOCK` on.
    fn after(&self, data: u64, size: u64) -> Result<u64, Error> {
        let end = data.checked_add(size).filter(|end| *end <= self.below.size()).ok_or_else(|| {
            Error::image(format!(
                "the header at {} says that {size} bytes follow, and the archive ends after {} bytes",
                self.at,
                self.below.size()
            ))
        })?;
        // The padding of the last member may be missing.
        Ok(end.checked_next_multiple_of(BLOCK).unwrap_or(end).min(self.below.size()))
    }

    /// The body of an extended header at `self.at`, which the walk leaves behind.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MOST_EXTENDED {
            return Err(Error::image(format!(
                "the extended header at {} has {size} bytes, and at most {MOST_EXTENDED} are read",
                self.at
            )));
        }
        let data = self.at + BLOCK;
        let after = self.after(data, size)?;
        let body = image::read(&*self.below, data, size as usize)?;
        self.at = after;
        Ok(body)
    }

    /// The next member. None at the end.
    ///
    /// # Errors
    /// A line if a header is wrong, or a limit is reached.
    pub fn next_member(&mut self) -> Result<Option<Member>, Error> {
        let first = self.at;
        let (mut pax, mut long_name, mut long_link) = (Pax::default(), None, None);
        loop {
            let Some((header, block)) = self.header()? else {
                return if self.at == first {
                    Ok(None)
                } else {
                    Err(Error::image(format!("no member follows the extended header at {first}")))
                };
            };
            let until_zero = |body: Vec<u8>| body.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            match header.kind {
                b'x' | b'X' => {
                    let at = self.at;
                    pax = Pax::parse(&self.extended(header.size)?, at)?;
                }
                b'g' => {
                    let at = self.at;
                    if Pax::parse(&self.extended(header.size)?, at)?.decides() {
                        return Err(Error::image(format!(
                            "the extended header at {at} sets names, sizes or maps of all members, \
                             which is not supported"
                        )));
                    }
                }
                b'L' => long_name = Some(until_zero(self.extended(header.size)?)),
                b'K' => long_link = Some(until_zero(self.extended(header.size)?)),
                _ => return self.member(first, header, &block, pax, (long_name, long_link)).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        first: u64,
        header: Header,
        block: &[u8],
        pax: Pax,
        long: (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Member, Error> {
        let at = self.at;
        let name = pax.sparse_name.or(pax.path).or(long.0).unwrap_or(header.name);
        let link = pax.link.or(long.1).unwrap_or(header.link);
        let kind = match header.kind {
            b'0' | 0 if !header.has_magic && name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'5' => Kind::Directory,
            _ => Kind::Other,
        };
        let told = pax.size.unwrap_or(header.size);
        if matches!(header.kind, b'3'..=b'6') && told != 0 {
            return Err(Error::image(format!(
                "the header at {at} is of a directory or device and has a size, {told}: \
                 programs do not agree where the next header is"
            )));
        }
        // Links have no data, whatever their size says.
        let stored = if matches!(kind, Kind::HardLink | Kind::SymbolicLink) { 0 } else { told };
        let mut data = at + BLOCK;
        let mut size = stored;
        let mut holes = Holes::None;
        if header.kind == b'S' {
            let (runs, real_size) = old_map(block, at, || {
                if data.checked_add(BLOCK).is_none_or(|end| end > self.below.size()) {
                    return Err(Error::image(format!("the archive ends within the map of the sparse member at {at}")));
                }
                data += BLOCK;
                self.block(data - BLOCK)
            })?;
            (holes, size) = (Holes::Known(runs), real_size);
        } else if pax.is_sparse && kind == Kind::File {
            size = pax.real_size.ok_or_else(|| {
                Error::image(format!("the sparse member at {at} has no GNU.sparse.size and no GNU.sparse.realsize"))
            })?;
            holes = match pax.version {
                (1, 0) => Holes::BeforeData,
                (0, 0 | 1) => {
                    if pax.count.is_some_and(|count| count != pax.runs.len() as u64) {
                        return Err(Error::image(format!(
                            "the sparse member at {at} says {} runs of data, and its map has {}",
                            pax.count.unwrap_or_default(),
                            pax.runs.len()
                        )));
                    }
                    Holes::Known(pax.runs)
                }
                (major, minor) => {
                    return Err(Error::image(format!(
                        "the sparse member at {at} has a map of version {major}.{minor}; 0.0, 0.1 and 1.0 are supported"
                    )));
                }
            };
        }
        self.at = self.after(data, stored)?;
        Ok(Member { header: first, name, link, kind, size, data, stored, holes })
    }
}
