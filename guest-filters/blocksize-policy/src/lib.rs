//! Advertises block sizes to clients, and refuses requests that do not keep to them.

mod policy;

use policy::{Carries, Chosen, Sizes};
use rbdkit_filter_sdk::client::Ending;
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// Smallest request, to which requests are aligned: a power of two up to 64k.
        blocksize_minimum: Option<Size>,
        /// Size of request that is fast: a power of two from 512 to 32M.
        blocksize_preferred: Option<Size>,
        /// Longest read or write: a multiple of blocksize-minimum.
        blocksize_maximum: Option<Size>,
        /// Whether requests that do not keep to the sizes pass.
        blocksize_error_policy: ErrorPolicy = ErrorPolicy::Allow,
        /// A client whose write is longer than this is disconnected; 0 means never.
        blocksize_write_disconnect: Size = Size(0),
    }
}

/// What happens to a request that does not keep to the block sizes.
#[derive(Clone, Copy, PartialEq)]
enum ErrorPolicy {
    /// It passes.
    Allow,
    /// It fails with EINVAL. The last request of an export may be shorter.
    Error,
    /// It fails with EINVAL.
    StrictError,
}

impl Choice for ErrorPolicy {
    const CHOICES: &'static [(&'static str, ErrorPolicy)] =
        &[("allow", ErrorPolicy::Allow), ("error", ErrorPolicy::Error), ("strict-error", ErrorPolicy::StrictError)];
}

/// The filter.
pub struct BlocksizePolicy {
    chosen: Chosen,
    policy: ErrorPolicy,
    /// The longest write of a client that stays connected, in bytes. 0 for any.
    write_disconnect: u64,
}

/// The block sizes that next states.
fn below() -> Result<Option<Sizes>, Errno> {
    match next::block_size() {
        Ok(BlockSizes { minimum, preferred, maximum }) => Ok(Some(Sizes { minimum, preferred, maximum })),
        Err(Errno::Enotsup) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl BlocksizePolicy {
    /// The block sizes of this layer. None if nobody states any.
    fn sizes(&self) -> Result<Option<Sizes>, Errno> {
        let below = below()?;
        if self.chosen.is_nothing() && below.is_none() {
            return Ok(None);
        }
        self.chosen.over(below).map(Some).map_err(|message| {
            error!("{message}");
            Errno::Einval
        })
    }

    /// Fails for a request that does not keep to the sizes, if the operator wants that.
    fn check(&self, operation: &str, offset: u64, length: u64, carries: Carries) -> Result<(), Errno> {
        if self.policy == ErrorPolicy::Allow {
            return Ok(());
        }
        let Some(sizes) = self.sizes()? else { return Ok(()) };
        let length = match self.policy {
            ErrorPolicy::Error => sizes.length_within_whole_blocks(offset, length, next::get_size()?),
            ErrorPolicy::Allow | ErrorPolicy::StrictError => length,
        };
        sizes.check(offset, length, carries).map_err(|message| {
            error!("a {operation} request was refused: {message}");
            Errno::Einval
        })
    }
}

impl Filter for BlocksizePolicy {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("blocksize-policy", env!("CARGO_PKG_VERSION"), "advertises block sizes and enforces them")
            .help("What is not given is that of the layer below, or 1, 4k and no limit if it states none.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        // 0 stands for the default, as in nbdkit.
        let bytes = |size: Option<Size>| size.unwrap_or_default().0;
        let Settings { blocksize_minimum: minimum, blocksize_preferred: preferred, .. } = settings;
        Ok(BlocksizePolicy {
            chosen: Chosen::new(bytes(minimum), bytes(preferred), bytes(settings.blocksize_maximum))?,
            policy: settings.blocksize_error_policy,
            write_disconnect: settings.blocksize_write_disconnect.0,
        })
    }
}

impl Connection for BlocksizePolicy {
    /// A contradiction is found when a client connects, before it sends a request.
    fn prepare(&self) -> Result<(), Errno> {
        self.sizes().map(drop)
    }
}

impl Info for BlocksizePolicy {
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        let Sizes { minimum, preferred, maximum } = self.sizes()?.ok_or(Errno::Enotsup)?;
        Ok(BlockSizes { minimum, preferred, maximum })
    }
}

impl Reads for BlocksizePolicy {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.check("read", offset, length.into(), Carries::Data)?;
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for BlocksizePolicy {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        if self.write_disconnect != 0 && u64::from(length) > self.write_disconnect {
            error!(
                "blocksize-write-disconnect={}: a client was disconnected for a write of {length} bytes",
                self.write_disconnect
            );
            // Without the right to do so the host has told the operator how to grant it.
            let _ = client::disconnect(Ending::AtOnce);
            return Err(Errno::Eshutdown);
        }
        self.check("write", offset, length.into(), Carries::Data)?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for BlocksizePolicy {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check("trim", offset, length, Carries::Nothing)?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for BlocksizePolicy {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check("zero", offset, length, Carries::Nothing)?;
        next::zero(offset, length, flags)
    }
}

impl Mapping for BlocksizePolicy {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.check("extents", offset, length, Carries::Nothing)?;
        next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for BlocksizePolicy {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.check("cache", offset, length, Carries::Nothing)?;
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(BlocksizePolicy: connection, info, reads, writes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn the_sizes_are_advertised_and_requests_pass() {
        let host = Host::new(Disk::pattern(8192)).serve::<BlocksizePolicy>(&["blocksize-preferred=32k"]).unwrap();
        let client = host.connect().unwrap();
        let sizes = client.block_size().unwrap();
        assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (1, 32768, u32::MAX));
        assert!(client.pread(1, 3).is_ok());
        let host = Host::new(Disk::pattern(8192)).serve::<BlocksizePolicy>(&[]).unwrap();
        assert_eq!(host.connect().unwrap().block_size().err(), Some(Errno::Enotsup));
    }

    #[test]
    fn with_the_policy_error_the_layer_below_sees_no_wrong_request() {
        let words = ["blocksize-minimum=512", "blocksize-maximum=4k", "blocksize-error-policy=error"];
        let host = Host::new(Disk::pattern(16384)).serve::<BlocksizePolicy>(&words).unwrap();
        let client = host.connect().unwrap();
        let none = CommandFlags::empty();
        host.take_calls();
        assert_eq!(client.pread(1, 512).err(), Some(Errno::Einval));
        assert_eq!(client.pread(0, 8192).err(), Some(Errno::Einval));
        assert_eq!(client.pwrite(0, b"x", none), Err(Errno::Einval));
        assert_eq!(client.zero(0, 1, none), Err(Errno::Einval));
        assert_eq!(client.trim(512, 513, none), Err(Errno::Einval));
        assert_eq!(client.cache(3, 512), Err(Errno::Einval));
        assert_eq!(client.extents(0, 1, none).err(), Some(Errno::Einval));
        assert_eq!(host.take_calls(), Vec::<String>::new());
        let line = "error: a read request was refused: the offset 1 is not a multiple of the minimum 512";
        assert_eq!(host.take_log()[0], line);
        assert!(client.pread(512, 4096).is_ok() && client.zero(0, 16384, none).is_ok());
    }

    #[test]
    fn the_last_request_of_an_export_may_be_shorter_unless_the_policy_is_strict() {
        let read_the_rest = |policy: &str| {
            let words = ["blocksize-minimum=512", policy];
            let host = Host::new(Disk::pattern(1000)).serve::<BlocksizePolicy>(&words).unwrap();
            let client = host.connect().unwrap();
            assert_eq!(client.pread(512, 487).err(), Some(Errno::Einval), "one byte is missing");
            assert_eq!(client.pread(513, 487).err(), Some(Errno::Einval), "the offset");
            client.pread(512, 488).err()
        };
        assert_eq!(read_the_rest("blocksize-error-policy=error"), None);
        assert_eq!(read_the_rest("blocksize-error-policy=strict-error"), Some(Errno::Einval));
    }

    #[test]
    fn a_client_whose_write_is_too_long_is_disconnected_whatever_the_policy_is() {
        for policy in ["blocksize-error-policy=allow", "blocksize-error-policy=error"] {
            let words = ["blocksize-write-disconnect=4k", policy];
            let host = Host::new(Disk::pattern(16384)).serve::<BlocksizePolicy>(&words).unwrap();
            let client = host.connect().unwrap();
            host.take_calls();
            client.pwrite(0, &[1; 4096], CommandFlags::empty()).unwrap();
            client.zero(0, 16384, CommandFlags::empty()).unwrap();
            client.pread(0, 16384).unwrap();
            assert_eq!((client.disconnected(), host.take_calls().len()), (None, 3));
            assert_eq!(client.pwrite(0, &[1; 4097], CommandFlags::empty()), Err(Errno::Eshutdown));
            assert_eq!(client.disconnected(), Some(Ending::AtOnce));
            assert_eq!(host.take_calls(), Vec::<String>::new());
        }
        let host = Host::new(Disk::pattern(16384)).serve::<BlocksizePolicy>(&[]).unwrap();
        let client = host.connect().unwrap();
        client.pwrite(0, &[1; 16384], CommandFlags::empty()).unwrap();
        assert_eq!(client.disconnected(), None);
    }

    #[test]
    fn a_client_cannot_connect_if_the_sizes_contradict_those_below() {
        let host = Host::new(Disk::pattern(8192)).serve::<BlocksizePolicy>(&["blocksize-minimum=64k"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Einval));
        assert!(host.take_log()[0].contains("minimum 65536, preferred 4096"));
    }
}
