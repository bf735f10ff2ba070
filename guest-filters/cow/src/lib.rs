//! Takes writes into a temporary overlay: next is opened read-only, and nothing is ever written to it.
//!
//! All state is the host's: a map of the blocks' states, the scratch file, range locks. So any instance serves any request, and nothing
//! is lost with one.
#![deny(unsafe_code)]

mod overlay;
#[cfg(test)]
mod tests;

use overlay::{Caching, MAP, Missing, Overlay};
use rbdkit_filter_blocks::real::{Real, block_bits, block_sizes, contract_extents};
use rbdkit_filter_sdk::prelude::*;

/// 64 MiB is the longest buffer; below 4 KiB no file system frees space.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 4096..=64 << 20;

/// The filter.
pub struct Cow {
    block: u64,
    on_cache: bool,
    /// `None`: ask the watched path each time.
    on_read: Option<bool>,
}

/// The connection's handle: the block size as a power of two, and what next does about caching.
fn handle(bits: u32, next_caches: bool) -> u64 {
    u64::from(bits) | u64::from(next_caches) << 8
}

fn bits() -> u32 {
    (request::handle() & 0xff) as u32
}

fn overlay() -> Overlay<'static, Real> {
    Overlay::new(&Real, bits())
}

impl Filter for Cow {
    fn describe() -> Description {
        Description::new("cow", env!("CARGO_PKG_VERSION"), "keeps writes in a temporary overlay")
            .help("The layer below is opened read-only. What is written is gone when the server ends.")
            .thread_model(ThreadModel::Parallel)
            .state_version(1)
            .param(
                Param::size("cow-block-size").default("64k").help("Bytes of a block: a power of two from 4k to 64M."),
            )
            .param(Param::bool("cow-on-cache").default("false").help("Cache requests copy into the overlay."))
            .param(
                Param::bool_or_watch("cow-on-read")
                    .default("false")
                    .help("Reads copy into the overlay; with /PATH, while that exists."),
            )
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let block = params.size("cow-block-size")?.unwrap_or(65536);
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return Err(format!("cow-block-size={block}: not a power of two from 4k to 64M"));
        }
        Ok(Cow {
            block,
            on_cache: params.bool("cow-on-cache")?.unwrap_or(false),
            on_read: params.bool_or_watch("cow-on-read", false)?,
        })
    }
}

impl Connection for Cow {
    fn open(&self, _readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(true, exportname)?;
        Ok(handle(block_bits(self.block), next::can()?.cache != Support::None))
    }

    fn prepare(&self) -> Result<(), Errno> {
        maps::resize(Scope::Exportname, MAP, 1 << bits(), next::get_size()?)
    }
}

impl Info for Cow {
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        Ok(block_sizes(1 << bits()))
    }
}

impl Features for Cow {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities {
            write: true,
            flush: true,
            rotational: below.rotational,
            trim: true,
            fast_zero: true,
            extents: true,
            // All connections see one overlay, and nothing of it is durable.
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        })
    }
}

impl Reads for Cow {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let keep = self.on_read.unwrap_or_else(|| files::holds_now("cow-on-read"));
        let missing = match (keep, self.on_cache) {
            (true, _) => Missing::Keep,
            (false, true) => Missing::Join,
            (false, false) => Missing::Read,
        };
        overlay().read(offset, length, missing)
    }
}

impl Writes for Cow {
    fn pwrite(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        overlay().write(offset, length)
    }
}

impl Flushes for Cow {
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

impl Trims for Cow {
    fn trim(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<(), Errno> {
        overlay().zero(offset, length, false)
    }
}

impl Zeroes for Cow {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        overlay().zero(offset, length, flags.contains(CommandFlags::FAST_ZERO))
    }
}

impl Mapping for Cow {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let overlay = overlay();
        if overlay.untouched(offset, length) {
            next::extents_forward(offset, length, offset, flags)?;
            return Ok(Vec::new());
        }
        Ok(contract_extents(overlay.extents(offset, length, flags.contains(CommandFlags::REQ_ONE))?))
    }
}

impl rbdkit_filter_sdk::Caching for Cow {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let how = match (self.on_cache, request::handle() >> 8 & 1 == 1) {
            (true, _) => Caching::CopyUp,
            // Where next only reads in place of caching, the host does that.
            (false, true) => Caching::Pass,
            (false, false) => Caching::Ignore,
        };
        overlay().cache(offset, length, how)
    }
}

rbdkit_filter_sdk::export!(Cow: connection, info, features, reads, writes, flushes, trims, zeroes, mapping, caching);
