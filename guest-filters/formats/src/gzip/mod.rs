//! gzip files (RFC 1952): members that follow each other, and zeroes at the end.
//!
//! Deflated data has no index. The file is decoded once when it is opened. Every 4 MiB the position
//! and the last 32 KiB are kept, at the next border of a deflate block: decoding resumes there.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use crate::checksum::{CRC32, Crc32};
use crate::unpack::{Codec, InflateFault, Inflater, Input, Point, RECENT, Storage, Stream, Unpacked, check_signature};
use crate::zlib::WINDOW;
use crate::{FormatInfo, Opened, Report};

/// gzip.
pub const INFO: FormatInfo = FormatInfo {
    name: "gzip",
    probe: |below| Ok(below.size() >= 18 && read(below, 0, 3)? == MAGIC),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default())?)) },
};

/// The signature, and the only method there is: deflate.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const HAS_CRC: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;
/// The most bytes of a name or a comment.
const MAX_TEXT: usize = 64 << 10;

/// Opens a gzip file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong.
pub fn open(below: Rc<dyn Source>, storage: &Storage) -> Result<Unpacked<Gzip>, Error> {
    check_signature(&*below, "a gzip file", &MAGIC[..2])?;
    Unpacked::open(Rc::clone(&below), Gzip { below }, storage, RECENT)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut input = Input::new(Rc::clone(below), 0);
    if let Some(name) = header(&mut input)? {
        report.fact("name", rbdkit_filter_sdk::image::quoted(&name));
    }
    report.fact("compressed size", below.size());
    Ok(report)
}

/// The decoder of gzip files.
pub struct Gzip {
    below: Rc<dyn Source>,
}

/// A place is the number of a bit, twice, and 1 if it is within a member.
const WITHIN: u64 = 1;

impl Codec for Gzip {
    const NAME: &'static str = "gzip";
    const MAX_UNIT: u64 = 0;
    const WINDOW: u32 = WINDOW as u32;

    fn offset(&self, at: u64) -> u64 {
        at / 16
    }

    fn stream(&self, point: Point, window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let bits = point.at / 2;
        let mut input = Input::new(Rc::clone(&self.below), bits.div_ceil(8));
        let member = if point.at & WITHIN == 0 {
            header(&mut input)?;
            Member::new(Inflater::default())
        } else {
            Member { sum: None, ..Member::new(Inflater::from_border(&*self.below, bits, &window)?) }
        };
        Ok(Box::new(Inflating { input, member }))
    }
}

/// Reads the header of a member. Returns the name of the file, if it has one.
fn header(input: &mut Input) -> Result<Option<Vec<u8>>, Error> {
    const WHAT: &str = "the header of a gzip member";
    let at = input.at();
    let fixed: [u8; 10] = input.array(WHAT)?;
    if fixed[..2] != MAGIC[..2] {
        let [a, b] = [fixed[0], fixed[1]];
        return Err(Error::image(format!("there is no gzip member at {at}: it begins with {a:02x}{b:02x}, not 1f8b")));
    }
    let (method, flags) = (fixed[2], fixed[3]);
    if method != MAGIC[2] {
        return Err(Error::image(format!("the gzip member at {at} has the method {method}; only 8 (deflate) exists")));
    }
    if flags & RESERVED != 0 {
        return Err(Error::image(format!("the gzip member at {at} has the reserved flags {:#x}", flags & RESERVED)));
    }
    if flags & HAS_EXTRA != 0 {
        let length = u16::from_le_bytes(input.array(WHAT)?);
        input.fill(&mut vec![0; length.into()], WHAT)?;
    }
    let name = if flags & HAS_NAME != 0 { Some(text(input, WHAT)?) } else { None };
    if flags & HAS_COMMENT != 0 {
        text(input, WHAT)?;
    }
    if flags & HAS_CRC != 0 {
        input.array::<2>(WHAT)?;
    }
    Ok(name)
}

/// A text that ends with a zero.
fn text(input: &mut Input, what: &str) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    loop {
        match input.array(what)? {
            [0] => return Ok(text),
            [byte] if text.len() < MAX_TEXT => text.push(byte),
            _ => return Err(Error::image(format!("{what} has a text of more than {MAX_TEXT} bytes"))),
        }
    }
}

struct Inflating {
    input: Input,
    member: Member,
}

/// The state of decoding one member.
struct Member {
    inflater: Inflater,
    /// None if decoding began within the member, or its checksum was compared.
    sum: Option<Crc32>,
    /// Bytes of the member that were returned.
    length: u64,
    trailer_read: bool,
}

impl Member {
    fn new(inflater: Inflater) -> Member {
        Member { inflater, sum: Some(CRC32.digest()), length: 0, trailer_read: false }
    }
}

impl Inflating {
    fn trailer(&mut self) -> Result<(), Error> {
        let at = self.input.at();
        let trailer: [u8; 8] = self.input.array("the checksum of a gzip member")?;
        let [crc, size] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|n| trailer[at + n])));
        self.member.trailer_read = true;
        let Some(found) = self.member.sum.take() else { return Ok(()) };
        let found = found.finalize();
        if found != crc {
            return Err(Error::image(format!(
                "the gzip member that ends at {at} has the wrong CRC: it says {crc:08x}, and the data has {found:08x}"
            )));
        }
        if self.member.length as u32 != size {
            return Err(Error::image(format!(
                "the gzip member that ends at {at} says that it has {size} bytes (modulo 2^32), and it has {}",
                self.member.length
            )));
        }
        Ok(())
    }
}

impl Stream for Inflating {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let got = self.member.inflater.read(&mut self.input, out).map_err(|fault| match fault {
            InflateFault::Source(error) => error,
            InflateFault::Cut(at) => Error::image(format!("the file ends after {at} bytes, within a gzip member")),
            InflateFault::Wrong(at) => Error::image(format!("the deflated data around {at} is wrong")),
        })?;
        if got == 0 {
            if !self.member.trailer_read {
                self.trailer()?;
            }
            return Ok(0);
        }
        if let Some(sum) = &mut self.member.sum {
            sum.update(&out[..got]);
        }
        self.member.length += got as u64;
        Ok(got)
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        if self.input.only_zeroes_follow()? {
            return Ok(None);
        }
        let at = self.input.at();
        header(&mut self.input)?;
        let member = &mut self.member;
        member.inflater.restart();
        (member.sum, member.length, member.trailer_read) = (Some(CRC32.digest()), 0, false);
        Ok(Some(at * 16))
    }

    fn consumed(&self) -> u64 {
        self.input.at()
    }

    fn resume(&self) -> Option<(u64, Vec<u8>)> {
        let (bits, window) = self.member.inflater.border(&self.input)?;
        Some((bits * 2 + WITHIN, window))
    }
}

#[cfg(test)]
mod tests;
