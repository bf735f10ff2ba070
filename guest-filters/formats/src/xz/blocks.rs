//! Decoding the blocks of a file one after the other.

use std::io::Read;
use std::rc::Rc;

use lzma_rust2::Lzma2Reader;
use lzma_rust2::filter::{bcj::BcjReader, delta::DeltaReader};
use rbdkit_filter_sdk::image::{Error, Source};
use sha2::{Digest, Sha256};

use super::format::{Check, HEADER, MAX_DICTIONARY, place};
use super::index::{check_header, number};
use crate::checksum::{CRC32, Crc32, crc32};
use crate::unpack::{Input, SharedInput, Stream};

static CRC64: crc::Crc<u64, crc::Table<16>> = crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_XZ);

/// The decoder.
pub struct Decoding {
    below: Rc<dyn Source>,
    input: SharedInput,
    check: Check,
    /// No block needs a larger dictionary, because no more data is wanted.
    dictionary: u32,
    block: Block,
}

struct Block {
    at: u64,
    data: Box<dyn Read>,
    sum: Sum,
    length: u64,
    ended: bool,
}

/// The checksum so far.
enum Sum {
    None,
    Crc32(Crc32),
    Crc64(crc::Digest<'static, u64, crc::Table<16>>),
    Sha256(Box<Sha256>),
}

impl Sum {
    fn new(check: Check) -> Sum {
        match check {
            Check::None => Sum::None,
            Check::Crc32 => Sum::Crc32(CRC32.digest()),
            Check::Crc64 => Sum::Crc64(CRC64.digest()),
            Check::Sha256 => Sum::Sha256(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::None => {}
            Sum::Crc32(sum) => sum.update(bytes),
            Sum::Crc64(sum) => sum.update(bytes),
            Sum::Sha256(sum) => sum.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Sum::None => Vec::new(),
            Sum::Crc32(sum) => sum.finalize().to_le_bytes().to_vec(),
            Sum::Crc64(sum) => sum.finalize().to_le_bytes().to_vec(),
            Sum::Sha256(sum) => sum.finalize().to_vec(),
        }
    }
}

impl Decoding {
    /// Begins with the block at `at`. If the file has no blocks, the index of a stream is there.
    pub fn begin(below: Rc<dyn Source>, at: u64, check: Check) -> Result<Decoding, Error> {
        Decoding::begin_within(below, at, check, u32::MAX)
    }

    /// The same for a reader who wants at most `dictionary` bytes in all.
    pub fn begin_within(below: Rc<dyn Source>, at: u64, check: Check, dictionary: u32) -> Result<Decoding, Error> {
        let input = SharedInput::new(Input::new(Rc::clone(&below), at));
        let block = match Block::begin(&input, check, dictionary)? {
            Some(block) => block,
            None => Block { at, data: Box::new(std::io::empty()), sum: Sum::None, length: 0, ended: true },
        };
        Ok(Decoding { below, input, check, dictionary, block })
    }
}

impl Block {
    /// Reads the header of a block. None if there is an index instead, of which nothing is read.
    fn begin(input: &SharedInput, check: Check, dictionary: u32) -> Result<Option<Block>, Error> {
        const WHAT: &str = "the header of an xz block";
        let at = input.with(|input| input.at());
        let [words] = input.with(|input| input.array(WHAT))?;
        if words == 0 {
            input.with(|input| input.go_to(at));
            return Ok(None);
        }
        let mut header = vec![0; (usize::from(words) + 1) * 4];
        header[0] = words;
        input.with(|input| input.fill(&mut header[1..], WHAT))?;
        let (content, crc) = header.split_at(header.len() - 4);
        if crc != crc32(content).to_le_bytes() {
            return Err(Error::image(format!("the xz block at {at} has the wrong CRC in its header")));
        }
        let data = filters(&content[1..], input, at, dictionary)?;
        Ok(Some(Block { at, data, sum: Sum::new(check), length: 0, ended: false }))
    }
}

/// The chain of filters that a header names, over the input. The dictionary has at most `most`
/// bytes.
fn filters(header: &[u8], input: &SharedInput, at: u64, most: u32) -> Result<Box<dyn Read>, Error> {
    let wrong = |what: String| Error::image(format!("the xz block at {at} {what}"));
    let short = || wrong("has a header that is wrong".into());
    let (flags, mut rest) = header.split_first().ok_or_else(short)?;
    if flags & 0x3c != 0 {
        return Err(wrong(format!("has the reserved flags {:#x}", flags & 0x3c)));
    }
    if flags & 0x40 != 0 {
        number(&mut rest).ok_or_else(short)?;
    }
    let size = if flags & 0x80 != 0 { Some(number(&mut rest).ok_or_else(short)?) } else { None };
    let mut chain = Vec::new();
    for _ in 0..=(flags & 3) {
        let id = number(&mut rest).ok_or_else(short)?;
        let length = number(&mut rest).and_then(|length| usize::try_from(length).ok()).ok_or_else(short)?;
        let properties = rest.get(..length).ok_or_else(short)?;
        rest = &rest[length..];
        chain.push((id, properties));
    }
    let Some((0x21, &[coded])) = chain.pop() else {
        return Err(wrong("does not end its filters with LZMA2".into()));
    };
    let dictionary = match coded {
        0..40 => (2 | u32::from(coded & 1)) << (coded / 2 + 11),
        40 => u32::MAX,
        _ => return Err(wrong(format!("has a dictionary of an unknown size ({coded}); 0 to 40 are possible"))),
    };
    // No more is needed than the block has. Its size may be wrong: then the decoder fails.
    let dictionary =
        size.and_then(|size| u32::try_from(size).ok()).map_or(dictionary, |size| size.min(dictionary)).min(most);
    if dictionary > MAX_DICTIONARY {
        return Err(wrong(format!("needs a dictionary of {dictionary} bytes; the limit is {MAX_DICTIONARY}")));
    }
    let mut data: Box<dyn Read> = Box::new(Lzma2Reader::new(input.clone(), dictionary.max(4096), None));
    // The filter that was applied last is undone first.
    for (id, properties) in chain.into_iter().rev() {
        let start = match properties {
            [] | [_] => 0,
            [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
            _ => return Err(short()),
        };
        data = match id {
            3 => {
                let [distance] = properties else { return Err(short()) };
                Box::new(DeltaReader::new(data, usize::from(*distance) + 1))
            }
            4 => Box::new(BcjReader::new_x86(data, start)),
            5 => Box::new(BcjReader::new_ppc(data, start)),
            6 => Box::new(BcjReader::new_ia64(data, start)),
            7 => Box::new(BcjReader::new_arm(data, start)),
            8 => Box::new(BcjReader::new_arm_thumb(data, start)),
            9 => Box::new(BcjReader::new_sparc(data, start)),
            10 => Box::new(BcjReader::new_arm64(data, start)),
            11 => Box::new(BcjReader::new_riscv(data, start)),
            _ => return Err(wrong(format!("has an unknown filter, {id:#x}"))),
        };
    }
    Ok(data)
}

impl Stream for Decoding {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let block = &mut self.block;
        if block.ended {
            return Ok(0);
        }
        let what = || format!("the xz block at {}", block.at);
        let got = block.data.read(out).map_err(|error| self.input.error(&what(), &error))?;
        if got > 0 {
            block.sum.update(&out[..got]);
            block.length += got as u64;
            return Ok(got);
        }
        block.ended = true;
        // The size of a block is a multiple of four; then follows the check.
        let padding = self.input.with(|input| {
            let mut padding = [0; 4];
            let length = (input.at().wrapping_neg() % 4) as usize;
            input.fill(&mut padding[..length], "the padding of an xz block")?;
            Ok::<_, Error>(padding)
        })?;
        if padding != [0; 4] {
            return Err(Error::image(format!("{} is padded with other bytes than zero", what())));
        }
        let mut expected = vec![0; self.check.size()];
        self.input.with(|input| input.fill(&mut expected, "the checksum of an xz block"))?;
        let found = std::mem::replace(&mut block.sum, Sum::None).finish();
        if found != expected {
            return Err(Error::image(format!("{} has the wrong {:?} checksum", what(), self.check)));
        }
        Ok(0)
    }

    fn next_unit(&mut self) -> Result<Option<u64>, Error> {
        loop {
            let at = self.input.with(|input| input.at());
            if at >= self.below.size() {
                return Ok(None);
            }
            if let Some(block) = Block::begin(&self.input, self.check, self.dictionary)? {
                self.block = block;
                return Ok(Some(place(at, self.check)));
            }
            if !self.next_stream()? {
                return Ok(None);
            }
        }
    }

    fn consumed(&self) -> u64 {
        self.input.with(|input| input.at())
    }
}

impl Decoding {
    /// Goes over the index, the footer and the zeroes after them to the blocks of the next stream.
    /// False at the end of the file. What the index says was checked when the file was opened.
    fn next_stream(&mut self) -> Result<bool, Error> {
        const WHAT: &str = "the index of an xz stream";
        let start = self.input.with(|input| -> Result<Option<u64>, Error> {
            let begin = input.at();
            input.array::<1>(WHAT)?;
            let count = number_of(input)?;
            for _ in 0..count.saturating_mul(2) {
                number_of(input)?;
            }
            let length = input.at() - begin;
            input.fill(&mut vec![0; (length.wrapping_neg() % 4) as usize + 4], WHAT)?;
            input.array::<{ HEADER as usize }>("the footer of an xz stream")?;
            if input.only_zeroes_follow()? {
                return Ok(None);
            }
            loop {
                let at = input.at();
                if input.array::<4>("the padding of an xz stream")? != [0; 4] {
                    return Ok(Some(at));
                }
            }
        })?;
        let Some(start) = start else { return Ok(false) };
        let flags = rbdkit_filter_sdk::image::read(&*self.below, start, HEADER as usize)?;
        self.check = Check::of([flags[6], flags[7]], start)?;
        check_header(&*self.below, start, self.check)?;
        self.input.with(|input| input.go_to(start + HEADER));
        Ok(true)
    }
}

/// A number of seven bits in each byte, from the input.
fn number_of(input: &mut Input) -> Result<u64, Error> {
    let mut bytes = Vec::new();
    while bytes.len() < 9 {
        let [byte] = input.array("the index of an xz stream")?;
        bytes.push(byte);
        if byte & 0x80 == 0 {
            break;
        }
    }
    number(&mut &bytes[..])
        .ok_or_else(|| Error::image(format!("the index of an xz stream is wrong before {}", input.at())))
}
