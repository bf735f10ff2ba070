//! Makes requests fit the block sizes of the layer below: it aligns them, and splits those that are
//! too long.
//!
//! A request that changes a part of a block reads the block, changes it and writes it. No other
//! request may write to the block meanwhile. Such a request takes an exclusive lock on its blocks;
//! a request of whole blocks takes a shared lock.

mod pieces;
mod whole_blocks;

use buffer::Buffer;
use locks::{Held, Mode};
use pieces::{Piece, Sizes};
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::durable::Durable;
use whole_blocks::{Run, WholeBlocks};

/// The largest `minblock` in bytes: the largest minimum block size that the contract allows.
const MAX_BLOCK: u64 = 64 << 10;

/// The longest read or write in bytes that the host accepts.
const MAX_DATA: u64 = 64 << 20;

/// How often one request for extents asks for the rest of its first block. With extents of 512
/// bytes or more this is enough for a block of 64 KiB. After that the block counts as data.
const MAX_QUESTIONS: u32 = 128;

params! {
    /// The parameters.
    pub struct Settings {
        /// Requests are aligned to it: a power of two up to 64k.
        #[param(check = block_size)]
        minblock: Option<Size>,
        /// The longest read or write: a multiple of minblock.
        maxdata: Option<Size>,
        /// The longest request without data: a multiple of minblock.
        maxlen: Option<Size>,
    }
}

fn block_size(size: &Size) -> Result<(), String> {
    match size.0.is_power_of_two() && size.0 <= MAX_BLOCK {
        true => Ok(()),
        false => Err("not a power of two up to 64k".into()),
    }
}

/// The filter.
pub struct Blocksize {
    settings: Settings,
}

/// The connection's block sizes, which `open` packed into the handle.
fn sizes() -> Sizes {
    Sizes::unpack(request::handle())
}

/// Locks the blocks of a request until the end of the call.
fn lock(sizes: Sizes, offset: u64, length: u64) -> Result<(), Errno> {
    if sizes.bits == 0 {
        return Ok(());
    }
    let mode = if sizes.fits(offset, length) { Mode::Shared } else { Mode::Exclusive };
    let (start, end) = (sizes.down(offset), sizes.up(offset + length));
    let _held = Held::new(Scope::Exportname, start, end - start, mode)?;
    Ok(())
}

/// Reads one block into a buffer of its own.
fn read_block(sizes: Sizes, block: u64) -> Result<Buffer, Errno> {
    let buffer = Buffer::new(sizes.block() as u32)?;
    next::pread(block, sizes.block() as u32, buffer.id(), 0)?;
    Ok(buffer)
}

impl Filter for Blocksize {
    type Params = Settings;

    fn describe() -> Description {
        Description::new(
            "blocksize",
            env!("CARGO_PKG_VERSION"),
            "makes requests fit the block sizes of the layer below",
        )
        .help("Each parameter defaults to what the layer below states.")
        .thread_model(ThreadModel::Parallel)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let block = settings.minblock.map_or(1, |size| size.0);
        for (name, size) in [("maxdata", settings.maxdata), ("maxlen", settings.maxlen)] {
            if let Some(Size(n)) = size.filter(|size| size.0 == 0 || size.0 % block != 0) {
                return Err(format!("{name}={n}: not a multiple of minblock, which is {block}"));
            }
        }
        Ok(Blocksize { settings })
    }
}

impl Connection for Blocksize {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let below = next::block_size().ok();
        let min_below = below.map_or(1, |sizes| u64::from(sizes.minimum));
        let block = self.settings.minblock.map_or(min_below, |size| size.0.max(min_below));
        let max_below = below.map_or(MAX_DATA, |sizes| u64::from(sizes.maximum)).min(MAX_DATA);
        let round = |n: u64, max: u64| (n.min(max) & !(block - 1)).max(block);
        let sizes = Sizes {
            bits: block.trailing_zeros(),
            maxdata: round(self.settings.maxdata.map_or(max_below, |size| size.0), max_below) as u32,
            maxlen: round(self.settings.maxlen.map_or(u32::MAX.into(), |size| size.0), u32::MAX.into()) as u32,
        };
        Ok(sizes.pack())
    }
}

impl Info for Blocksize {
    fn get_size(&self) -> Result<u64, Errno> {
        Ok(sizes().down(next::get_size()?))
    }

    fn block_size(&self) -> Result<BlockSizes, Errno> {
        let preferred = next::block_size().map_or(4096, |below| below.preferred);
        Ok(BlockSizes { minimum: 1, preferred: preferred.max(1 << sizes().bits), maximum: u32::MAX })
    }
}

impl Features for Blocksize {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(below)
    }
}

impl Reads for Blocksize {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let sizes = sizes();
        let mut at = 0;
        for piece in sizes.split(offset, length.into(), sizes.maxdata) {
            match piece {
                Piece::Whole { offset, length } => next::pread(offset, length, PAYLOAD, at)?,
                Piece::Part { block, skip, length } => {
                    let whole = read_block(sizes, block)?;
                    Payload.copy(at, &whole, skip..skip + length);
                }
            }
            at += piece.length();
        }
        Ok(())
    }
}

impl Writes for Blocksize {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let sizes = sizes();
        lock(sizes, offset, length.into())?;
        let durable = Durable::new(flags)?;
        let mut at = 0;
        for piece in sizes.split(offset, length.into(), sizes.maxdata) {
            match piece {
                Piece::Whole { offset, length } => next::pwrite(offset, length, PAYLOAD, at, durable.flags)?,
                Piece::Part { block, skip, length } => {
                    let whole = read_block(sizes, block)?;
                    whole.copy(skip, &Payload, at..at + length);
                    next::pwrite(block, sizes.block() as u32, whole.id(), 0, durable.flags)?;
                }
            }
            at += piece.length();
        }
        durable.finish()
    }
}

impl Flushes for Blocksize {
    fn flush(&self) -> Result<(), Errno> {
        next::flush()
    }
}

impl Trims for Blocksize {
    /// Parts of blocks stay as they are: a trim need not discard anything.
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let sizes = sizes();
        let durable = Durable::new(flags)?;
        for piece in sizes.split(offset, length, sizes.maxlen) {
            if let Piece::Whole { offset, length } = piece {
                next::trim(offset, length.into(), durable.flags)?;
            }
        }
        durable.finish()
    }
}

impl Zeroes for Blocksize {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let sizes = sizes();
        // If there were several steps, a later one could turn out to be slow after the first was
        // done.
        let fast = flags.contains(CommandFlags::FAST_ZERO);
        if fast && (!sizes.fits(offset, length) || length > sizes.maxlen.into()) {
            return Err(Errno::Enotsup);
        }
        lock(sizes, offset, length)?;
        let durable = Durable::new(flags)?;
        for piece in sizes.split(offset, length, sizes.maxlen) {
            match piece {
                Piece::Whole { offset, length } => next::zero(offset, length.into(), durable.flags)?,
                Piece::Part { block, skip, length } => {
                    let whole = read_block(sizes, block)?;
                    whole.fill(skip..skip + length, 0);
                    next::pwrite(block, sizes.block() as u32, whole.id(), 0, durable.flags & CommandFlags::FUA)?;
                }
            }
        }
        durable.finish()
    }
}

/// Adds next's extents of a range to the answer.
fn ask(blocks: &mut WholeBlocks, range: (u64, u64), limit: u64, flags: CommandFlags) -> Result<(), Errno> {
    for extent in next::extents_until(range.0, range.1, limit, flags)? {
        blocks.push(extent.length, extent.kind.bits());
    }
    Ok(())
}

fn extent(run: Run) -> Extent {
    Extent { offset: run.offset, length: run.length, kind: ExtentType::from_bits_truncate(run.kind) }
}

impl Mapping for Blocksize {
    /// Next is asked for whole blocks, and each block gets one type. Next may describe less than a
    /// block at once. Then it is asked for the rest of the block.
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let sizes = sizes();
        let limit = sizes.down(next::get_size()?);
        let (start, end) = (sizes.down(offset), sizes.up(offset + length));
        let length = (end - start).min(sizes.maxlen.into());
        if sizes.bits == 0 {
            next::extents_forward_until(start, length, limit, offset, flags)?;
            return Ok(Vec::new());
        }
        let minimum = next::block_size().map_or(1, |below| u64::from(below.minimum));
        let mut blocks = WholeBlocks::new(start, sizes.block());
        ask(&mut blocks, (start, length), limit, flags)?;
        for _ in 0..MAX_QUESTIONS {
            match blocks.missing() {
                Some(from) if from % minimum == 0 => {
                    let rest = start + sizes.block() - from;
                    ask(&mut blocks, (from, rest), from + rest, flags & !CommandFlags::REQ_ONE)?;
                }
                _ => break,
            }
        }
        Ok(blocks.finish(offset).into_iter().map(extent).collect())
    }
}

impl Caching for Blocksize {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let sizes = sizes();
        let (start, end) = (sizes.down(offset), sizes.up(offset + length));
        for piece in sizes.split(start, end - start, sizes.maxlen) {
            if let Piece::Whole { offset, length } = piece {
                next::cache(offset, length.into())?;
            }
        }
        Ok(())
    }
}

rbdkit_filter_sdk::export!(
    Blocksize: connection, info, features, reads, writes, flushes, trims, zeroes, mapping, caching
);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn an_unaligned_write_reads_its_blocks_and_writes_whole_ones() {
        let words = ["minblock=512", "maxdata=1k"];
        let host = Host::new(Disk::pattern(8192)).serve::<Blocksize>(&words).unwrap();
        let client = host.connect().unwrap();
        let mut expected = host.disk().to_vec();
        expected[500..3000].fill(7);
        host.take_calls();
        client.pwrite(500, &[7; 2500], CommandFlags::FUA).unwrap();
        assert_eq!(*host.disk(), *expected);
        let calls = host.take_calls();
        assert!(
            calls.iter().all(|call| {
                let numbers: Vec<u64> = call.split(' ').filter_map(|word| word.parse().ok()).collect();
                numbers.iter().all(|n| n % 512 == 0) && numbers.get(1).is_none_or(|length| *length <= 1024)
            }),
            "{calls:?}"
        );
        assert_eq!(client.pread(499, 2502).unwrap(), expected[499..3001]);
    }
}
