//! Changes the size of the layer below. What lies beyond its end reads as zero.

mod size;

use rbdkit_filter_sdk::prelude::*;
use size::{Sizing, length_below};

params! {
    /// The parameters.
    pub struct Settings {
        /// The size of the disk. By default it is that of the layer below.
        truncate: Option<Size>,
        /// Rounds the size up to a multiple of it.
        #[param(check = more_than_zero)]
        round_up: Option<Size>,
        /// Rounds the size down to a multiple of it.
        #[param(check = more_than_zero)]
        round_down: Option<Size>,
    }
}

fn more_than_zero(size: &Size) -> Result<(), String> {
    if size.0 > 0 { Ok(()) } else { Err("must be more than 0".into()) }
}

/// The filter.
pub struct Truncate {
    sizing: Sizing,
}

/// How much of a request the layer below has. Its size is the handle.
fn below(offset: u64, length: u64) -> u64 {
    length_below(offset, length, request::handle())
}

/// The error of a write beyond the end of the layer below.
fn no_space(offset: u64) -> Errno {
    let size = request::handle();
    error!("a write at {offset} has data beyond the end of the layer below, which has {size} bytes");
    Errno::Enospc
}

impl Filter for Truncate {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("truncate", env!("CARGO_PKG_VERSION"), "changes the size of the layer below")
            .help("What lies beyond the end of the layer below reads as zero. Only zeroes can be written there.")
            .thread_model(ThreadModel::Parallel)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        let (round_up, round_down) = (bytes(settings.round_up), bytes(settings.round_down));
        Ok(Truncate { sizing: Sizing { truncate: bytes(settings.truncate), round_up, round_down } })
    }
}

impl Connection for Truncate {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        next::get_size()
    }
}

impl Info for Truncate {
    fn get_size(&self) -> Result<u64, Errno> {
        self.sizing.size(next::get_size()?).map_err(|message| {
            error!("{message}");
            Errno::Einval
        })
    }
}

impl Features for Truncate {
    /// Extents are known even if the layer below has none: the part beyond its end is a hole.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { extents: true, ..below })
    }
}

impl Reads for Truncate {
    /// Most requests lie below. So the size is asked for only after the layer below refused one.
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let whole = next::pread(offset, length, PAYLOAD, 0);
        if whole != Err(Errno::Einval) {
            return whole;
        }
        let count = below(offset, length.into()) as u32;
        if count == length {
            return whole;
        }
        if count > 0 {
            next::pread(offset, count, PAYLOAD, 0)?;
        }
        Payload.fill(count.., 0);
        Ok(())
    }
}

impl Writes for Truncate {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let count = below(offset, length.into()) as u32;
        if count < length && !Payload.is_zero(count..) {
            return Err(no_space(offset));
        }
        if count > 0 { next::pwrite(offset, count, PAYLOAD, 0, flags) } else { Ok(()) }
    }
}

impl Trims for Truncate {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let count = below(offset, length);
        if count > 0 { next::trim(offset, count, flags) } else { Ok(()) }
    }
}

impl Zeroes for Truncate {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let count = below(offset, length);
        if count > 0 { next::zero(offset, count, flags) } else { Ok(()) }
    }
}

impl Mapping for Truncate {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let count = below(offset, length);
        if count == length {
            // The host cuts an extent that runs on beyond this layer's size.
            next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
            return Ok(Vec::new());
        }
        let mut list = if count > 0 { next::extents(offset, count, flags)? } else { Vec::new() };
        let end = list.last().map_or(offset, |last| last.offset + last.length);
        let wanted = list.is_empty() || !flags.contains(CommandFlags::REQ_ONE);
        if wanted && end == offset + count {
            let kind = ExtentType::HOLE | ExtentType::ZERO;
            // The host cuts it at the end of this layer.
            list.push(Extent { offset: end, length: i64::MAX as u64 - end, kind });
        }
        Ok(list)
    }
}

impl Caching for Truncate {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let count = below(offset, length);
        if count > 0 { next::cache(offset, count) } else { Ok(()) }
    }
}

rbdkit_filter_sdk::export!(
    Truncate: connection, info, features, reads, writes, trims, zeroes, mapping, caching
);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn what_lies_beyond_the_layer_below_reads_as_zero_and_takes_zeroes_only() {
        let host = Host::new(Disk::pattern(1000)).serve::<Truncate>(&["truncate=2000"]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!(client.size(), 2000);
        let expected = [&host.disk()[990..], &[0; 30][..]].concat();
        assert_eq!(client.pread(990, 40).unwrap(), expected);
        assert_eq!(client.pread(1000, 1000).unwrap(), [0; 1000]);
        assert_eq!(client.pwrite(995, b"0123456789", NONE), Err(Errno::Enospc));
        assert_eq!(
            host.take_log(),
            ["error: a write at 995 has data beyond the end of the layer below, which has 1000 bytes"]
        );
        assert_eq!(host.disk()[995..], expected[5..10]);
        host.take_calls();
        client.pwrite(995, b"01234\0\0\0", CommandFlags::FUA).unwrap();
        client.zero(900, 1100, NONE).unwrap();
        client.trim(1000, 1000, NONE).unwrap();
        client.cache(0, 2000).unwrap();
        assert_eq!(host.take_calls(), ["pwrite 995 5 fua", "zero 900 100", "cache 0 1000"]);
    }

    #[test]
    fn extents_end_with_a_hole() {
        let host = Host::new(Disk::pattern(8192)).serve::<Truncate>(&["round-up=10000"]).unwrap();
        let client = host.connect().unwrap();
        let data = Extent { offset: 100, length: 8092, kind: ExtentType::empty() };
        let hole = Extent { offset: 8192, length: 1808, kind: ExtentType::HOLE | ExtentType::ZERO };
        assert_eq!(client.extents(100, 9000, NONE).unwrap(), [data, hole]);
        assert_eq!(client.extents(8192, 100, NONE).unwrap(), [hole]);
        assert_eq!(client.extents(100, 9000, CommandFlags::REQ_ONE).unwrap(), [data]);
        assert_eq!(client.extents(100, 10, NONE).unwrap(), [data]);
    }

    #[test]
    fn a_smaller_disk_passes_requests_on() {
        let host = Host::new(Disk::pattern(1000)).serve::<Truncate>(&["round-down=512"]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.size(), client.pread(500, 12).unwrap()), (512, host.disk()[500..512].to_vec()));
        assert_eq!(client.pread(500, 13), Err(Errno::Einval));
    }

    #[test]
    fn a_unit_of_zero_is_refused_and_a_size_that_is_too_large_fails_the_connection() {
        let wrong = |word: &str| Host::new(Disk::zeroes(10)).serve::<Truncate>(&[word]).err();
        assert_eq!(wrong("round-up=0").as_deref(), Some("truncate: round-up=0: must be more than 0"));
        assert_eq!(wrong("round-down=0").as_deref(), Some("truncate: round-down=0: must be more than 0"));
        let words = ["truncate=5E", "round-up=4E"];
        let host = Host::new(Disk::zeroes(10)).serve::<Truncate>(&words).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Einval));
        assert!(host.take_log()[0].contains("becomes larger than"));
    }
}
