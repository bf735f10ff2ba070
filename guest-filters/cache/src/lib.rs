//! Caches blocks of the layer below in a temporary file: writes until they are flushed, prefetched
//! data, and if the user wants it data that was read.
//!
//! All state is in the host: maps of the blocks' states and ages, the scratch file, range locks. So
//! any instance can serve any request, and nothing is lost with an instance.

mod cache;
mod lru;
mod read;
mod reclaim;
#[cfg(test)]
mod tests;
mod write;
mod write_back;
mod zero;

use cache::{BlockLimit, Cache, NextCapabilities, Policy};
use rbdkit_filter_blocks::sdk_glue::{
    DEFAULT_BLOCK_SIZE, block_bits, block_sizes, check_block_size, contract_extents, zero_flags,
};
use rbdkit_filter_blocks::sdk_host::SdkHost;
use rbdkit_filter_sdk::prelude::*;
use read::AbsentReads;

/// The smallest cache. With fewer blocks, data would leave the cache before it is used again.
const MIN_BLOCKS: u64 = 4;

params! {
    /// The parameters.
    pub struct Settings {
        /// When writes reach the layer below: with a flush, at once, or only when the cache is too
        /// large.
        cache: Policy = Policy::Writeback,
        /// Bytes of a block: a power of two from 4k to 64M.
        #[param(check = check_block_size)]
        cache_min_block_size: Size = DEFAULT_BLOCK_SIZE,
        /// How large the cache may grow. By default it may grow as large as the export.
        cache_max_size: Option<Size>,
        /// Percentage of cache-max-size above which blocks are reclaimed.
        cache_high_threshold: Percent = Percent(95),
        /// Percentage of cache-max-size down to which blocks are reclaimed.
        cache_low_threshold: Percent = Percent(80),
        /// Whether reads are kept in the cache; /PATH: while that exists.
        cache_on_read: BoolOrWatch = BoolOrWatch::Fixed(false),
    }
}

impl Choice for Policy {
    const CHOICES: &'static [(&'static str, Policy)] =
        &[("writeback", Policy::Writeback), ("writethrough", Policy::Writethrough), ("unsafe", Policy::Unsafe)];
}

/// The filter.
pub struct CacheFilter {
    policy: Policy,
    /// The block size in bytes that the user chose.
    block: u64,
    /// The high and the low threshold in bytes.
    limit: Option<(u64, u64)>,
    on_read: BoolOrWatch,
}

/// Packs the connection's handle: the block size as a power of two, and what next can do.
fn pack(bits: u32, next: NextCapabilities) -> u64 {
    let can = [next.write, next.flush, next.fua, next.trim, next.zero, next.multi_conn];
    let flags = can.iter().rev().fold(0, |flags, can| flags << 1 | u64::from(*can));
    u64::from(bits) | flags << 8
}

/// The inverse of [`pack`].
fn unpack(handle: u64) -> (u32, NextCapabilities) {
    let can = |n: u32| handle >> (8 + n) & 1 == 1;
    let next =
        NextCapabilities { write: can(0), flush: can(1), fua: can(2), trim: can(3), zero: can(4), multi_conn: can(5) };
    ((handle & 0xff) as u32, next)
}

impl CacheFilter {
    fn cache(&self) -> Cache<'static, SdkHost> {
        let (bits, next) = unpack(request::handle());
        let blocks = |bytes: u64| (bytes >> bits).max(1);
        let limit = self.limit.map(|(high, low)| BlockLimit { high: blocks(high), low: blocks(low) });
        Cache::new(&SdkHost, bits, self.policy, limit, next)
    }
}

impl Filter for CacheFilter {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("cache", env!("CARGO_PKG_VERSION"), "caches blocks of the layer below in a temporary file")
            .help(
                "Each export has a cache of its own. The cache is written back before the server ends, \
                 and is gone afterwards.",
            )
            .thread_model(ThreadModel::Parallel)
            .state_version(1)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let block = settings.cache_min_block_size.0;
        let (Percent(high), Percent(low)) = (settings.cache_high_threshold, settings.cache_low_threshold);
        if low == 0 {
            return Err("cache-low-threshold=0: must be greater than zero".into());
        }
        if low >= high {
            return Err(format!("cache-low-threshold={low}: must be less than cache-high-threshold, which is {high}"));
        }
        let max = settings.cache_max_size.map(|size| size.0);
        if let Some(max) = max.filter(|max| *max < MIN_BLOCKS * block) {
            let min = MIN_BLOCKS * block;
            return Err(format!("cache-max-size={max}: must be at least {min} with blocks of {block} bytes"));
        }
        let part = |max: u64, percent: u8| (u128::from(max) * u128::from(percent) / 100) as u64;
        Ok(CacheFilter {
            policy: settings.cache,
            block,
            limit: max.map(|max| (part(max, high), part(max, low))),
            on_read: settings.cache_on_read,
        })
    }
}

impl Connection for CacheFilter {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let can = next::can()?;
        let next = NextCapabilities {
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
        maps::resize(Scope::Exportname, cache::MAP, 1 << bits, size)?;
        maps::resize(Scope::Exportname, lru::MAP, 1 << bits, size)
    }

    fn finalize(&self) -> Result<(), Errno> {
        match self.cache().finalize()? {
            0 => Ok(()),
            remaining => {
                error!("{remaining} blocks could not be written back");
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
            // All connections share one cache, and a flush writes all of it back.
            multi_conn: !through || below.multi_conn,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        })
    }
}

impl Reads for CacheFilter {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let absent = if self.on_read.holds() { AbsentReads::Keep } else { AbsentReads::Read };
        self.cache().read(offset, length, absent)
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
        self.cache().zero(offset, length, zero_flags(flags))
    }
}

impl Mapping for CacheFilter {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let cache = self.cache();
        if let Some(limit) = cache.as_next_until(offset, length) {
            next::extents_forward_until(offset, length, limit, offset, flags)?;
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
