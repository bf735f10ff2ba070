//! Keeps writes in an overlay. The filter opens next read-only and never writes to it.
//!
//! The overlay is a temporary one ([`overlay`]), or with `cow-file=` one that is kept ([`kept`]).
//! All state is in the host: maps of the blocks' states, the scratch file or the file that is kept,
//! range locks. So any instance can serve any request, and nothing is lost with an instance.

mod kept;
mod overlay;
#[cfg(test)]
mod tests;

use kept::Kept;
use overlay::{AbsentReads, CacheRequests, MAP, Overlay};
use rbdkit_filter_blocks::ZeroFlags;
use rbdkit_filter_blocks::sdk_glue::{
    DEFAULT_BLOCK_SIZE, block_bits, block_sizes, check_block_size, contract_extents, zero_flags,
};
use rbdkit_filter_blocks::sdk_host::SdkHost;
use rbdkit_filter_formats::qcow2::write::Unmap;
use rbdkit_filter_sdk::image::Error;
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
        /// Keep the overlay in this file, a qcow2 image. It is made if it is missing or empty.
        cow_file: Option<StorageFile>,
        /// The name of the disk below in a new cow-file, for other programs that open the file.
        cow_backing: Option<String>,
        /// The format of the disk that cow-backing names.
        cow_backing_format: Option<String>,
    }
}

/// The filter.
pub struct Cow {
    settings: Settings,
    /// The overlay that is kept.
    kept: Option<Kept>,
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
        Description::new("cow", env!("CARGO_PKG_VERSION"), "keeps writes in an overlay")
            .help(
                "The layer below is opened read-only. All writes are lost when the server ends, unless \
                 cow-file= keeps them.",
            )
            .thread_model(ThreadModel::Parallel)
            .state_version(1)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let kept = kept(&settings)?;
        Ok(Cow { settings, kept })
    }
}

/// The overlay that the parameters ask for, if it is kept.
fn kept(settings: &Settings) -> Result<Option<Kept>, String> {
    let Some(file) = settings.cow_file.clone() else {
        return match (&settings.cow_backing, &settings.cow_backing_format) {
            (None, None) => Ok(None),
            (Some(_), _) => Err("cow-backing= is for the overlay in a file: cow-file= is missing".into()),
            (None, Some(_)) => Err("cow-backing-format= is for the overlay in a file: cow-file= is missing".into()),
        };
    };
    if settings.cow_on_cache || !matches!(settings.cow_on_read, BoolOrWatch::Fixed(false)) {
        return Err("cow-on-read= and cow-on-cache= copy into the temporary overlay, and not into cow-file=".into());
    }
    let block = settings.cow_block_size.0;
    if block > MAX_CLUSTER {
        return Err(format!("cow-block-size={block}: is more than {MAX_CLUSTER}, the most in a cow-file"));
    }
    let format = settings.cow_backing_format.clone();
    let backing = match (settings.cow_backing.clone(), format) {
        (None, None) => None,
        (None, Some(_)) => return Err("cow-backing-format= is given without cow-backing=".into()),
        (Some(name), format) => Some((name, format.unwrap_or_else(|| "raw".into()))),
    };
    Ok(Some(Kept::new(file, block.trailing_zeros(), backing)))
}

/// The largest cluster of qcow2 in bytes.
const MAX_CLUSTER: u64 = 2 << 20;

impl Connection for Cow {
    fn open(&self, _readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(true, exportname)?;
        if let Some(kept) = &self.kept {
            kept.prepare().map_err(Error::log)?;
        }
        Ok(pack(block_bits(self.settings.cow_block_size.0), next::can()?.cache != Support::None))
    }

    fn prepare(&self) -> Result<(), Errno> {
        match &self.kept {
            Some(kept) => kept.writer().map(drop),
            None => maps::resize(Scope::Exportname, MAP, 1 << bits(), next::get_size()?),
        }
    }

    fn finalize(&self) -> Result<(), Errno> {
        self.kept.as_ref().map_or(Ok(()), Kept::finish)
    }

    fn close(&self) {
        self.kept.iter().for_each(Kept::close);
    }
}

impl Info for Cow {
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        Ok(block_sizes(1 << bits()))
    }
}

impl Features for Cow {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        if self.kept.is_some() {
            return Ok(kept::can(below));
        }
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
        if let Some(kept) = &self.kept {
            return kept.read(offset, length);
        }
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
        match &self.kept {
            Some(kept) => kept.write(offset, length),
            None => overlay().write(offset, length),
        }
    }
}

impl Flushes for Cow {
    fn flush(&self) -> Result<(), Errno> {
        self.kept.as_ref().map_or(Ok(()), Kept::flush)
    }
}

impl Trims for Cow {
    fn trim(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<(), Errno> {
        match &self.kept {
            Some(kept) => kept.unmap(offset, length, Unmap::Discard),
            None => overlay().zero(offset, length, ZeroFlags::default()),
        }
    }
}

impl Zeroes for Cow {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        match &self.kept {
            Some(kept) => kept.unmap(offset, length, Unmap::Zero),
            None => overlay().zero(offset, length, zero_flags(flags)),
        }
    }
}

impl Mapping for Cow {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        if let Some(kept) = &self.kept {
            return kept.extents(offset, length, flags);
        }
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
        if let Some(kept) = &self.kept {
            return kept.cache(offset, length);
        }
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
