//! Writes statistics about the requests when the server ends.

mod keys;
mod report;

use keys::Op;
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The file that the statistics are written to.
        statsfile: WriteFile,
        /// Whether the file keeps what it has.
        statsappend: bool = false,
        /// The percentage of requests whose sizes are shown; 0 for none.
        statsthreshold: Percent = Percent(95),
    }
}

/// The filter.
pub struct Stats {
    settings: Settings,
}

/// The key of the time when the server started, in nanoseconds. No key of [`keys`] is as large.
const STARTED: u64 = u64::MAX;

impl Stats {
    /// Does something, and counts it if it succeeds.
    fn count(&self, op: Op, offset: u64, length: u64, serve: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let began = clock::monotonic();
        serve()?;
        let ns = clock::monotonic().saturating_sub(began);
        let sizes = self.settings.statsthreshold.0 > 0;
        // An error means that a size has no place. The other sums were counted.
        let _ = counters::add_all(&keys::additions(op, offset, length, ns, sizes));
        Ok(())
    }
}

impl Filter for Stats {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("stats", env!("CARGO_PKG_VERSION"), "writes statistics about the requests")
            .help("Writes numbers, bytes, times and sizes of the requests to a file, when the server ends.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Stats { settings })
    }
}

impl Lifecycle for Stats {
    fn get_ready(&self) -> Result<(), String> {
        if !self.settings.statsappend {
            let emptied = self.settings.statsfile.truncate();
            emptied.map_err(|error| format!("statsfile: cannot be emptied: {}", error.name()))?;
        }
        let mut first = keys::reserved();
        first.push((STARTED, clock::monotonic()));
        counters::add_all(&first).map_err(|error| format!("the counters do not work: {}", error.name()))
    }

    fn cleanup(&self) {
        let elapsed = clock::monotonic().saturating_sub(counters::get(STARTED));
        let sums = keys::sums(&counters::list());
        let text = report::report(elapsed, self.settings.statsthreshold.0.into(), &sums);
        if let Err(error) = self.settings.statsfile.append(text.as_bytes()) {
            error!("statsfile: {}", error.name());
        }
    }
}

impl Features for Stats {
    /// The host would carry out FUA that is emulated with a flush in front of this layer, and
    /// flushes would be counted that no client sent. So this layer passes FUA on.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let fua = if below.fua == Support::Emulate { Support::Native } else { below.fua };
        Ok(Capabilities { fua, ..below })
    }
}

impl Reads for Stats {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.count(Op::Read, offset, length.into(), || next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for Stats {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.count(Op::Write, offset, length.into(), || next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for Stats {
    fn flush(&self) -> Result<(), Errno> {
        self.count(Op::Flush, 0, 0, next::flush)
    }
}

impl Trims for Stats {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.count(Op::Trim, offset, length, || next::trim(offset, length, flags))
    }
}

impl Zeroes for Stats {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.count(Op::Zero, offset, length, || next::zero(offset, length, flags))
    }
}

impl Mapping for Stats {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let forward = || next::extents_forward_until(offset, length, u64::MAX, offset, flags);
        self.count(Op::Extents, offset, length, forward)?;
        Ok(Vec::new())
    }
}

impl Caching for Stats {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.count(Op::Cache, offset, length, || next::cache(offset, length))
    }
}

rbdkit_filter_sdk::export!(Stats: lifecycle, features, reads, writes, flushes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn the_report_is_written_at_the_end() {
        let host = || Host::new(Disk::pattern(8192)).file("/stats", b"old\n");
        for (append, first) in [("statsappend=false", "total: 2 ops"), ("statsappend=true", "old")] {
            let host = host().serve::<Stats>(&["statsfile=/stats", append, "statsthreshold=100"]).unwrap();
            let client = host.connect().unwrap();
            host.pass_time(2_000_000_000);
            client.pread(0, 4096).unwrap();
            client.flush().unwrap();
            host.fail_next("pread", Errno::Eio);
            assert_eq!(client.pread(0, 4096), Err(Errno::Eio));
            drop(client);
            let text = String::from_utf8(host.stop().files["/stats"].clone()).unwrap();
            assert!(text.starts_with(first), "{text}");
            let lines = "total: 2 ops, 2.000000 s, 4.00 KiB, 2.00 KiB/s\n\
                         read: 1 ops, 0.000000 s, 4.00 KiB, (n/a)/s op, 2.00 KiB/s total\n  \
                         Request size and alignment breakdown:\n    \
                         12 bits: 100.0% (1 reqs, 4.00 KiB total)\n\n\
                         flush: 1 ops, 0.000000 s, 0 bytes, (n/a)/s op, 0 bytes/s total\n";
            assert!(text.ends_with(lines), "{text}");
        }
    }
}
