//! The sparse-random plugin: a disk with runs of random data and runs of holes, as the disks of
//! virtual machines have.
//!
//! Which blocks hold data is drawn when the server starts ([`bitmap`]). The data of a block follow
//! from the seed and the block's offset. Both are nbdkit's for the same parameters.
#![forbid(unsafe_code)]

mod bitmap;

use std::convert::Infallible;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    Buffer, Capabilities, ConfigError, DISK_FUNCTIONS, Errno, Error, Extents, Flags, Param, PluginInfo, Result, Span,
    Support, ThreadModel,
};
use rbdkit_synthetic::{Content, Generator, Plan, Seed, Synthetic, check_written, required_size};

use bitmap::{BLOCK, Bitmap, Kind, Shape};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "sparse-random",
    longname: "rbdkit sparse-random plugin",
    description: "A disk with runs of random data and runs of holes",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Synthetic::<SparseRandom>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::size("size").magic().required().help("Size of the disk"),
        Seed::spec(),
        ParamSpec::string("percent")
            .placeholder("N")
            .default_value("10")
            .help("The share of the disk that holds data, in percent"),
        ParamSpec::size("runlength").default_value("16M").help("The average length of a run of data"),
        ParamSpec::bool("random-content")
            .default_value("false")
            .help("Whether each byte of a block is random, or all are the same random byte"),
    ]
}

struct SparseRandom {
    size: Option<u64>,
    seed: Seed,
    shape: Shape,
    content: BlockContent,
}

/// What a block of data holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockContent {
    /// One byte that is not 0, repeated.
    OneByte,
    /// Random bytes.
    Random,
}

impl Default for SparseRandom {
    fn default() -> SparseRandom {
        SparseRandom {
            size: None,
            seed: Seed::default(),
            shape: Shape { percent: 10.0, run_length: 16 << 20 },
            content: BlockContent::OneByte,
        }
    }
}

impl Plan for SparseRandom {
    type Content = SparseDisk;

    const FUNCTIONS: &'static [&'static str] = &DISK_FUNCTIONS;

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            "seed" => self.seed.set(param)?,
            "percent" => {
                let percent = param.text()?.trim().parse().ok().filter(|share| (0.0..=100.0).contains(share));
                self.shape.percent = percent.ok_or_else(|| param.error("is not a number from 0 to 100"))?;
            }
            "runlength" => match param.size()? {
                0 => return Err(param.error("has to be greater than 0")),
                length => self.shape.run_length = length,
            },
            "random-content" => {
                self.content = if param.bool()? { BlockContent::Random } else { BlockContent::OneByte };
            }
            _ => return Err(param.unknown("sparse-random")),
        }
        Ok(())
    }

    fn content(&self) -> Result<SparseDisk, ConfigError> {
        let size = required_size(self.size, "sparse-random")?;
        let seed = self.seed.get()?;
        Ok(SparseDisk { size, seed, content: self.content, bitmap: Bitmap::new(size, seed, self.shape)? })
    }
}

struct SparseDisk {
    size: u64,
    seed: u64,
    content: BlockContent,
    bitmap: Bitmap,
}

/// The part of a range that lies in one block.
struct Part {
    block: u64,
    /// Where it begins within the block.
    within: usize,
    length: usize,
}

/// The parts of a range, block by block.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = Part> {
    let end = offset + length;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
        let (from, to) = (offset.max(block * BLOCK), end.min((block + 1) * BLOCK));
        Part { block, within: (from % BLOCK) as usize, length: (to - from) as usize }
    })
}

impl SparseDisk {
    /// Computes a part of a block of data.
    fn fill_block(&self, bytes: &mut [u8], part: &Part) {
        let mut generator = Generator::new(self.seed.wrapping_add(part.block * BLOCK));
        match self.content {
            BlockContent::OneByte => bytes.fill((generator.next_u64() as u8).max(1)),
            BlockContent::Random => {
                for _ in 0..part.within {
                    generator.next_u64();
                }
                bytes.fill_with(|| generator.next_u64() as u8);
            }
        }
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) {
        let mut rest = bytes;
        for part in parts(offset, rest.len() as u64) {
            let (now, after) = std::mem::take(&mut rest).split_at_mut(part.length);
            match self.bitmap.kind(part.block) {
                Kind::Data => self.fill_block(now, &part),
                Kind::Hole => now.fill(0),
            }
            rest = after;
        }
    }

    /// Whether the range holds no data.
    fn check_hole(&self, offset: u64, length: u64) -> Result<()> {
        let (mut block, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        while block < end {
            if self.bitmap.kind(block) == Kind::Data {
                return Err(Error::new(Errno::Eio, "trying to trim or zero non-hole in disk"));
            }
            block += self.bitmap.run(block, end);
        }
        Ok(())
    }
}

impl Content for SparseDisk {
    /// A random byte takes some 2 ns, so 64 KiB take less than 200 us.
    const AT_ONCE: u32 = 64 << 10;

    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { fast_zero: false, fua: Support::Emulate, ..Capabilities::NATIVE }
    }

    fn read(&self, buffer: &mut Buffer, span: Span, offset: u64) {
        let mut at = span.at;
        for part in parts(offset, span.len.into()) {
            let here = Span::new(at, part.length as u32);
            at += here.len;
            match self.bitmap.kind(part.block) {
                Kind::Hole => buffer.set_zero(here),
                Kind::Data => {
                    let Ok(()) = buffer.fill_with(here, |bytes| {
                        self.fill_block(bytes, &part);
                        Ok::<_, Infallible>(())
                    });
                }
            }
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        check_written(bytes, offset, |expected, offset| self.fill(expected, offset))
    }

    fn trim(&self, offset: u64, length: u64) -> Result<()> {
        self.check_hole(offset, length)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.check_hole(offset, length)
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Extents {
        let mut extents = Extents::new(offset, length);
        let range_end = (offset + length).div_ceil(BLOCK);
        let mut at = offset;
        while at < offset + length {
            let block = at / BLOCK;
            let end = ((block + self.bitmap.run(block, range_end)) * BLOCK).min(self.size);
            let is_hole = self.bitmap.kind(block) == Kind::Hole;
            if !extents.push(end - at, is_hole, is_hole) || flags.req_one {
                break;
            }
            at = end;
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(content: BlockContent) -> SparseDisk {
        let shape = Shape { percent: 40.0, run_length: 3 * BLOCK };
        let size = 100 * BLOCK + 17;
        SparseDisk { size, seed: 9, content, bitmap: Bitmap::new(size, 9, shape).unwrap() }
    }

    #[test]
    fn a_read_at_any_offset_is_a_part_of_the_whole() {
        for content in [BlockContent::OneByte, BlockContent::Random] {
            let disk = disk(content);
            let mut whole = vec![0; disk.size as usize];
            disk.fill(&mut whole, 0);
            for (offset, length) in [(0, 1), (4095, 2), (1000, 10_000), (8192, 4096), (100 * 4096, 17)] {
                let mut buffer = Buffer::new(length + 9);
                let span = Span::new(5, length);
                disk.read(&mut buffer, span, offset);
                assert_eq!(buffer.bytes(span), &whole[offset as usize..][..length as usize], "{offset} {length}");
                disk.write(buffer.bytes(span), offset).unwrap();
            }
            whole[5000] ^= 1;
            assert_eq!(disk.write(&whole, 0).unwrap_err().errno(), Errno::Eio);
        }
    }

    #[test]
    fn extents_are_what_the_blocks_hold_and_only_holes_can_be_zeroed() {
        let disk = disk(BlockContent::OneByte);
        let mut whole = vec![0; disk.size as usize];
        disk.fill(&mut whole, 0);
        for offset in [0, 1, 4095, 50_000] {
            let extents = disk.extents(offset, disk.size - offset, Flags::NONE);
            assert_eq!(extents.next_offset(), disk.size);
            for extent in extents.as_slice() {
                let bytes = &whole[extent.offset as usize..extent.end() as usize];
                assert_eq!(bytes.iter().all(|byte| *byte == 0), extent.hole);
                assert_eq!(bytes.contains(&0), extent.hole);
                assert_eq!(disk.zero(extent.offset, extent.length).is_ok(), extent.hole);
                assert_eq!(disk.trim(extent.offset, 1).is_ok(), extent.hole);
            }
        }
    }

    #[test]
    fn parameters_that_make_no_sense_are_refused() {
        let error = |key: &str, value: &str| {
            let param = Param { key, value: value.as_ref() };
            SparseRandom::default().config(param).unwrap_err().to_string()
        };
        for value in ["-1", "101", "NaN", "x", ""] {
            assert_eq!(error("percent", value), format!("percent={value}: is not a number from 0 to 100"));
        }
        assert_eq!(error("runlength", "0"), "runlength=0: has to be greater than 0");
    }
}
