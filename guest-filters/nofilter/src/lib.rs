//! Passes every request through unchanged, but enters the guest for each one: it costs what a
//! filter costs.

use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Nofilter;

impl Filter for Nofilter {
    type Params = ();

    fn describe() -> Description {
        Description::new("nofilter", env!("CARGO_PKG_VERSION"), "passes requests through")
            .help("Changes nothing. For tests, and to measure what a filter costs.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Nofilter)
    }
}

impl Reads for Nofilter {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)
    }
}

impl Writes for Nofilter {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Flushes for Nofilter {
    fn flush(&self) -> Result<(), Errno> {
        next::flush()
    }
}

impl Trims for Nofilter {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Nofilter {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::zero(offset, length, flags)
    }
}

impl Mapping for Nofilter {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        next::extents_forward_until(offset, length, u64::MAX, offset, flags)?;
        Ok(Vec::new())
    }
}

impl Caching for Nofilter {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        next::cache(offset, length)
    }
}

rbdkit_filter_sdk::export!(Nofilter: reads, writes, flushes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn every_operation_passes_with_its_flags() {
        let host = Host::new(Disk::pattern(8192)).serve::<Nofilter>(&[]).unwrap();
        let client = host.connect().unwrap();
        let fua = CommandFlags::FUA;
        host.take_calls();
        assert_eq!(client.pread(5, 7).unwrap(), host.disk()[5..12]);
        client.pwrite(1, b"x", fua).unwrap();
        client.flush().unwrap();
        client.trim(2, 3, fua).unwrap();
        client.zero(0, 8192, fua | CommandFlags::MAY_TRIM).unwrap();
        client.cache(4, 5).unwrap();
        let hole = ExtentType::HOLE | ExtentType::ZERO;
        assert_eq!(
            client.extents(6, 7, CommandFlags::REQ_ONE).unwrap()[0],
            Extent { offset: 6, length: 7, kind: hole }
        );
        let calls = host.take_calls();
        let expected =
            ["pread 5 7", "pwrite 1 1 fua", "flush", "trim 2 3 fua", "zero 0 8192 fua may-trim", "cache 4 5"];
        assert_eq!(calls[..6], expected);
        assert_eq!(calls[6..], ["extents 6 7 req-one"]);
    }
}
