//! lzip files: members that follow each other. Each ends with its sizes, so the members are found
//! from the end of the file, without decoding.

use std::io::Read;
use std::rc::Rc;

use lzma_rust2::LzmaReader;
use rbdkit_filter_sdk::image::{Error, Fields, Source, read};

use crate::checksum::{CRC32, Crc32};
use crate::unpack::{
    Codec, Index, Input, Limits, MAX_UNITS, Point, SharedInput, Storage, Stream, Unpacked, check_signature,
};
use crate::{FormatInfo, Opened, Report};

/// lzip.
pub const INFO: FormatInfo = FormatInfo {
    name: "lzip",
    probe: |below| Ok(below.size() >= SMALLEST && read(below, 0, 5)? == *b"LZIP\x01"),
    report,
    open: |below| -> Opened { Ok(Rc::new(open(below, &Storage::default(), Limits::default())?)) },
};

const HEADER: u64 = 6;
const TRAILER: u64 = 20;
const SMALLEST: u64 = HEADER + TRAILER + 10;
/// The largest dictionary that is allocated. lzip uses 32 MiB at level 9.
const MAX_DICTIONARY: u32 = 64 << 20;

/// Opens an lzip file.
///
/// # Errors
/// Those of the source and the storage, and a line if the file is wrong or beyond the limits.
pub fn open(below: Rc<dyn Source>, storage: &Storage, limits: Limits) -> Result<Unpacked<Lzip>, Error> {
    check_signature(&*below, "an lzip file", b"LZIP")?;
    let index = members(&*below)?;
    let recent = limits.check("member", &index)?;
    Unpacked::open(Rc::clone(&below), Lzip { below, index }, storage, recent)
}

fn report(below: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    let index = members(&**below)?;
    report.size = Some(index.size);
    report.fact("members", index.units.len());
    Ok(report)
}

/// The decoder of lzip files.
pub struct Lzip {
    below: Rc<dyn Source>,
    index: Index,
}

/// Goes through the members from the end.
fn members(below: &dyn Source) -> Result<Index, Error> {
    let mut end = below.size();
    let mut backwards: Vec<(u64, u64)> = Vec::new();
    while end > 0 {
        if end < HEADER + TRAILER {
            return Err(Error::image(format!("the first {end} bytes are too short for an lzip member")));
        }
        let trailer = read(below, end - TRAILER, TRAILER as usize)?;
        let trailer = Fields::little(&trailer, "the end of an lzip member");
        let (data, size) = (trailer.u64(4)?, trailer.u64(12)?);
        if size < HEADER + TRAILER || size > end {
            return Err(Error::image(format!(
                "the lzip member that ends at {end} says that it has {size} bytes; it can have {} to {end}. Data after \
                 the last member is not supported",
                HEADER + TRAILER
            )));
        }
        end -= size;
        // It is checked here, so that every member that is listed begins like one.
        dictionary(&read(below, end, HEADER as usize)?, end)?;
        backwards.push((end, data));
        if backwards.len() > MAX_UNITS {
            return Err(Error::image(format!("the lzip file has more than {MAX_UNITS} members")));
        }
    }
    let mut index = Index::default();
    for (at, data) in backwards.into_iter().rev() {
        if data > 0 || index.units.is_empty() {
            index.units.retain(|unit| unit.out < index.size || index.size > 0);
            if index.size == 0 {
                index.units.clear();
            }
            index.units.push(Point { out: index.size, at });
        }
        index.size = index
            .size
            .checked_add(data)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| Error::image("the sizes of the lzip members are more than 2^63 bytes together"))?;
    }
    if index.units.is_empty() {
        return Err(Error::image("the lzip file is empty"));
    }
    Ok(index)
}

/// The size of the dictionary that the header of a member names.
fn dictionary(header: &[u8], at: u64) -> Result<u32, Error> {
    let fields = Fields::little(header, "the header of an lzip member");
    if fields.bytes(0, 4)? != b"LZIP" {
        return Err(Error::image(format!("there is no lzip member at {at}: it does not begin with LZIP")));
    }
    let version = fields.u8(4)?;
    if version != 1 {
        return Err(Error::image(format!("the lzip member at {at} has version {version}; version 1 is supported")));
    }
    let coded = fields.u8(5)?;
    let (log, wedges) = (coded & 0x1f, u32::from(coded >> 5));
    if !(12..=29).contains(&log) {
        return Err(Error::image(format!(
            "the lzip member at {at} has a dictionary of 2^{log} bytes; 2^12 to 2^29 are possible"
        )));
    }
    let size = (1u32 << log) - wedges * (1u32 << (log - 4));
    if size > MAX_DICTIONARY {
        return Err(Error::image(format!(
            "the lzip member at {at} needs a dictionary of {size} bytes; the limit is {MAX_DICTIONARY}"
        )));
    }
    Ok(size.max(4096))
}

impl Codec for Lzip {
    const NAME: &'static str = "lzip";
    const MAX_UNIT: u64 = crate::xz::MAX_UNIT;

    fn index(&self) -> Result<Option<Index>, Error> {
        Ok(Some(self.index.clone()))
    }

    fn offset(&self, at: u64) -> u64 {
        at
    }

    fn stream(&self, point: Point, _window: Vec<u8>) -> Result<Box<dyn Stream>, Error> {
        let input = SharedInput::new(Input::new(Rc::clone(&self.below), point.at));
        let member = Member::begin(&input)?;
        Ok(Box::new(Decoding { input, member }))
    }
}

struct Decoding {
    input: SharedInput,
    member: Member,
}

struct Member {
    at: u64,
    /// None after its end.
    lzma: Option<LzmaReader<SharedInput>>,
    crc: Crc32,
    length: u64,
}

impl Member {
    fn begin(input: &SharedInput) -> Result<Member, Error> {
        let (at, header) =
            input.with(|input| (input.at(), input.array::<{ HEADER as usize }>("the header of an lzip member")));
        let dictionary = dictionary(&header?, at)?;
        // These are the only properties that lzip has.
        let lzma = LzmaReader::new(input.clone(), u64::MAX, 3, 0, 2, dictionary, None)
            .map_err(|error| input.error(&format!("the lzip member at {at}"), &error))?;
        Ok(Member { at, lzma: Some(lzma), crc: CRC32.digest(), length: 0 })
    }
}

impl Stream for Decoding {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let member = &mut self.member;
        let Some(lzma) = &mut member.lzma else { return Ok(0) };
        let what = format!("the lzip member at {}", member.at);
        let got = lzma.read(out).map_err(|error| self.input.error(&what, &error))?;
        if got > 0 {
            member.crc.update(&out[..got]);
            member.length += got as u64;
            return Ok(got);
        }
        // The decoder has read ahead. What it did not use belongs to the trailer and what follows.
        let unused = member.lzma.take().map_or(0, |lzma| lzma.into_parts().1.len() as u64);
        let (end, trailer) = self.input.with(|input| {
            input.go_to(input.at() - unused);
            let trailer = input.array::<{ TRAILER as usize }>("the end of an lzip member");
            (input.at(), trailer)
        });
        let trailer = trailer?;
        let fields = Fields::little(&trailer, "the end of an lzip member");
        let (crc, size, whole) = (fields.u32(0)?, fields.u64(4)?, fields.u64(12)?);
        let found = std::mem::replace(&mut member.crc, CRC32.digest()).finalize();
        if crc != found {
            return Err(Error::image(format!(
                "{what} has the wrong CRC: it says {crc:08x}, and the data has {found:08x}"
            )));
        }
        if size != member.length || whole != end - member.at {
            return Err(Error::image(format!(
                "{what} says that it has {size} bytes in {whole}, and it has {} in {}",
                member.length,
                end - member.at
            )));
        }
        Ok(0)
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        let (at, size) = self.input.with(|input| (input.at(), input.size()));
        if at >= size {
            return Ok(None);
        }
        self.member = Member::begin(&self.input)?;
        Ok(Some(at))
    }

    fn consumed(&self) -> u64 {
        self.input.with(|input| input.at())
    }
}

#[cfg(test)]
mod tests;
