//! Keeps writes in a temporary overlay. The filter opens next read-only and never writes to it.
//!
//! All state is in the host: a map of the blocks' states, the scratch file, range locks. So any
//! instance can serve any request, and nothing is lost with an instance.

mod overlay;
#[cfg(test)]
mod tests;

use overlay::{AbsentReads, CacheRequests, MAP, Overlay};
use rbdkit_filter_blocks::ZeroFlags;
use rbdkit_filter_blocks::sdk_glue::{
    DEFAULT_BLOCK_SIZE, block_bits, block_sizes, check_block_size, contract_extents, zero_flags,
};
use rbdkit_filter_blocks::sdk_host::SdkHost;
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// Bytes of a block: a power of two from 4k to 64M.
        #[param(check = check_block_size)]
        cow_block_size: Size = DEFAULT_BLOCK_SIZE,
        /// Whether cache requests copy into the overlay.
        cow_on_cache: bool = false,
        /// Whether reads copy into the overlay; /PATH: while that exists.
        cow_on_read: BoolOrWatch = BoolOrWatch::Fixed(false),
    }
}

/// The filter.
pub struct Cow {
    settings: Settings,
}

/// Packs the connection's handle: the block size as a power of two, and whether next can cache.
fn pack(bits: u32, next_caches: bool) -> u64 {
    u64::from(bits) | u64::from(next_caches) << 8
}

fn bits() -> u32 {
    (request::handle() & 0xff) as u32
}

fn next_caches() -> bool {
    request::handle() >> 8 & 1 == 1
}

fn overlay() -> Overlay<'static, SdkHost> {
    Overlay::new(&SdkHost, bits())
}

impl Filter for Cow {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("cow", env!("CARGO_PKG_VERSION"), "keeps writes in a temporary overlay")
            .help("The layer below is opened read-only. All writes are lost when the server ends.")
            .thread_model(ThreadModel::Parallel)
            .state_version(1)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Cow { settings })
    }
}

impl Connection for Cow {
    fn open(&self, _readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(true, exportname)?;
        Ok(pack(block_bits(self.settings.cow_block_size.0), next::can()?.cache != Support::None))
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
            // All connections share one overlay, and nothing in it is durable.
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        })
    }
}

impl Reads for Cow {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let absent = match (self.settings.cow_on_read.holds(), self.settings.cow_on_cache) {
            (true, _) => AbsentReads::CopyUp,
            (false, true) => AbsentReads::Join,
            (false, false) => AbsentReads::Read,
        };
        overlay().read(offset, length, absent)
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
        overlay().zero(offset, length, ZeroFlags::default())
    }
}

impl Zeroes for Cow {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        overlay().zero(offset, length, zero_flags(flags))
    }
}

impl Mapping for Cow {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let overlay = overlay();
        if let Some(limit) = overlay.as_next_until(offset, length)? {
            next::extents_forward_until(offset, length, limit, offset, flags)?;
            return Ok(Vec::new());
        }
        Ok(contract_extents(overlay.extents(offset, length, flags.contains(CommandFlags::REQ_ONE))?))
    }
}

impl Caching for Cow {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let how = match (self.settings.cow_on_cache, next_caches()) {
            (true, _) => CacheRequests::CopyUp,
            // If next emulates caching by reading, the host does that.
            (false, true) => CacheRequests::Forward,
            (false, false) => CacheRequests::Ignore,
        };
        overlay().cache(offset, length, how)
    }
}

rbdkit_filter_sdk::export!(Cow: connection, info, features, reads, writes, flushes, trims, zeroes, mapping, caching);
