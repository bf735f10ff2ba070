//! Keeps blocks of the layer below in a temporary file: what was written until it is flushed, what was prefetched, and on demand what was read.
//!
//! All state is the host's: maps of the blocks' states and ages, the scratch file, range locks. So any instance serves any request, and
//! nothing is lost with one.
#![deny(unsafe_code)]

mod lru;
mod store;
#[cfg(test)]
mod tests;

use rbdkit_filter_blocks::Zeroing;
use rbdkit_filter_blocks::real::{Real, block_bits, block_sizes, contract_extents};
use rbdkit_filter_sdk::prelude::*;
use store::{Cache, Limit, Next, Policy};

/// 64 MiB is the longest buffer; below 4 KiB no file system frees space.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 4096..=64 << 20;

/// With fewer blocks than that nothing would stay in the cache until it is used.
const FEWEST_BLOCKS: u64 = 4;

/// The filter.
pub struct CacheFilter {
    policy: Policy,
    block: u64,
    /// The high and the low threshold in bytes.
    limit: Option<(u64, u64)>,
    /// `None`: ask the watched path each time.
    on_read: Option<bool>,
}

/// The connection's handle: the block size as a power of two, and what next can.
fn pack(bits: u32, next: Next) -> u64 {
    let abilities = [next.write, next.flush, next.fua, next.trim, next.zero, next.multi_conn];
    let flags = abilities.iter().rev().fold(0, |flags, can| flags << 1 | u64::from(*can));
    u64::from(bits) | flags << 8
}

fn unpack(handle: u64) -> (u32, Next) {
    let can = |n: u32| handle >> (8 + n) & 1 == 1;
    let next = Next { write: can(0), flush: can(1), fua: can(2), trim: can(3), zero: can(4), multi_conn: can(5) };
    ((handle & 0xff) as u32, next)
}

impl CacheFilter {
    fn cache(&self) -> Cache<'static, Real> {
        let (bits, next) = unpack(request::handle());
        let blocks = |bytes: u64| (bytes >> bits).max(1);
        let limit = self.limit.map(|(high, low)| Limit { high: blocks(high), low: blocks(low) });
        Cache::new(&Real, bits, self.policy, limit, next)
    }
}

impl Filter for CacheFilter {
    fn describe() -> Description {
        Description::new("cache", env!("CARGO_PKG_VERSION"), "caches blocks of the layer below in a temporary file")
            .help("Sizes are of the cache of one export. What is in the cache is gone when the server ends; it is written back before.")
            .thread_model(ThreadModel::Parallel)
            .state_version(1)
            .param(
                Param::choice("cache", &["writeback", "writethrough", "unsafe"])
                    .default("writeback")
                    .help("When writes reach the layer below: with a flush, at once, or only when the cache is too large."),
            )
            .param(
                Param::size("cache-min-block-size").default("64k").help("Bytes of a block: a power of two from 4k to 64M."),
            )
            .param(Param::size("cache-max-size").help("How large the cache may grow; without it, as large as the export."))
            .param(
                Param::percent("cache-high-threshold")
                    .default("95")
                    .help("Above this part of cache-max-size blocks are reclaimed ..."),
            )
            .param(Param::percent("cache-low-threshold").default("80").help("... until this part is reached."))
            .param(
                Param::bool_or_watch("cache-on-read")
                    .default("false")
                    .help("What is read is kept; with /PATH, while that exists."),
            )
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let policy = match params.text("cache") {
            None | Some("writeback") => Policy::Writeback,
            Some("writethrough") => Policy::Writethrough,
            Some("unsafe") => Policy::Unsafe,
            Some(other) => return Err(format!("cache={other}: not one of writeback, writethrough, unsafe")),
        };
        let block = params.size("cache-min-block-size")?.unwrap_or(65536);
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return Err(format!("cache-min-block-size={block}: not a power of two from 4k to 64M"));
        }
        let high = params.percent("cache-high-threshold")?.unwrap_or(95);
        let low = params.percent("cache-low-threshold")?.unwrap_or(80);
        if low == 0 {
            return Err("cache-low-threshold=0: must be greater than zero".into());
        }
        if low >= high {
            return Err(format!("cache-low-threshold={low}: must be less than cache-high-threshold, which is {high}"));
        }
        let max = params.size("cache-max-size")?;
        if let Some(max) = max.filter(|max| *max < FEWEST_BLOCKS * block) {
            let least = FEWEST_BLOCKS * block;
            return Err(format!("cache-max-size={max}: too small, the least is {least} with blocks of {block} bytes"));
        }
        let part = |max: u64, percent: u8| (u128::from(max) * u128::from(percent) / 100) as u64;
        Ok(CacheFilter {
            policy,
            block,
            limit: max.map(|max| (part(max, high), part(max, low))),
            on_read: params.bool_or_watch("cache-on-read", false)?,
        })
    }
}

impl Connection for CacheFilter {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let can = next::can()?;
        let next = Next {
            write: can.write,
            flush: can.flush,
            fua: can.fua != Support::None,
            trim: can.trim,
            zero: can.zero != Support::None,
            multi_conn: can.multi_conn,
        };
        Ok(pack(block_bits(self.block), next))
    }

    fn prepare(&self) -> Result<(), Errno> {
        let (bits, _) = unpack(request::handle());
        let size = next::get_size()?;
        maps::resize(Scope::Exportname, store::MAP, 1 << bits, size)?;
        maps::resize(Scope::Exportname, lru::MAP, 1 << bits, size)
    }

    fn finalize(&self) -> Result<(), Errno> {
        match self.cache().finalize()? {
            0 => Ok(()),
            left => {
                log::error(&format!("{left} blocks could not be written back"));
                Err(Errno::Eio)
            }
        }
    }
}

impl Info for CacheFilter {
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        Ok(block_sizes(1 << unpack(request::handle()).0))
    }
}

impl Features for CacheFilter {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let through = self.policy == Policy::Writethrough;
        Ok(Capabilities {
            write: below.write,
            flush: !through || below.flush,
            rotational: below.rotational,
            trim: below.trim || self.policy == Policy::Unsafe,
            fast_zero: !through || below.fast_zero,
            extents: true,
            // All connections see one cache, and a flush writes all of it back.
            multi_conn: !through || below.multi_conn,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        })
    }
}

impl Reads for CacheFilter {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let keep = self.on_read.unwrap_or_else(|| files::holds_now("cache-on-read"));
        self.cache().read(offset, length, keep)
    }
}

impl Writes for CacheFilter {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.cache().write(offset, length, flags.contains(CommandFlags::FUA))
    }
}

impl Flushes for CacheFilter {
    fn flush(&self) -> Result<(), Errno> {
        self.cache().flush()
    }
}

impl Trims for CacheFilter {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.cache().trim(offset, length, flags.contains(CommandFlags::FUA))
    }
}

impl Zeroes for CacheFilter {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let how = Zeroing {
            fua: flags.contains(CommandFlags::FUA),
            may_trim: flags.contains(CommandFlags::MAY_TRIM),
            fast: flags.contains(CommandFlags::FAST_ZERO),
        };
        self.cache().zero(offset, length, how)
    }
}

impl Mapping for CacheFilter {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let cache = self.cache();
        if cache.as_next(offset, length) {
            next::extents_forward(offset, length, offset, flags)?;
            return Ok(Vec::new());
        }
        Ok(contract_extents(cache.extents(offset, length, flags.contains(CommandFlags::REQ_ONE))?))
    }
}

impl Caching for CacheFilter {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        CacheFilter::cache(self).prefetch(offset, length)
    }
}

rbdkit_filter_sdk::export!(
    CacheFilter: connection, info, features, reads, writes, flushes, trims, zeroes, mapping, caching
);
