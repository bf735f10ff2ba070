//! Counts the bytes that are read, written, zeroed and trimmed, and logs the sums when the server
//! ends.

use rbdkit_filter_sdk::prelude::*;

/// The keys of the sums. The name of each is in [`NAMES`].
const READ: u64 = 0;
const WRITTEN: u64 = 1;
const ZEROED: u64 = 2;
const TRIMMED: u64 = 3;

/// What each sum is called in the log.
const NAMES: [(u64, &str); 4] = [(READ, "read"), (WRITTEN, "written"), (ZEROED, "zeroed"), (TRIMMED, "trimmed")];

/// The filter.
pub struct Count;

/// Counts an operation that has succeeded. There are four keys, so each of them has a place.
fn count(key: u64, length: u64) -> Result<(), Errno> {
    counters::add(key, length)
}

impl Filter for Count {
    type Params = ();

    fn describe() -> Description {
        Description::new("count", env!("CARGO_PKG_VERSION"), "counts bytes")
            .help("Logs how many bytes were read, written, zeroed and trimmed, when the server ends.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Count)
    }
}

impl Lifecycle for Count {
    fn cleanup(&self) {
        let sums: Vec<String> = NAMES.iter().map(|(key, name)| format!("{name} {}", counters::get(*key))).collect();
        info!("count bytes: {}", sums.join(", "));
    }
}

impl Reads for Count {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)?;
        count(READ, length.into())
    }
}

impl Writes for Count {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        next::pwrite(offset, length, PAYLOAD, 0, flags)?;
        count(WRITTEN, length.into())
    }
}

impl Trims for Count {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::trim(offset, length, flags)?;
        count(TRIMMED, length)
    }
}

impl Zeroes for Count {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        next::zero(offset, length, flags)?;
        count(ZEROED, length)
    }
}

rbdkit_filter_sdk::export!(Count: lifecycle, reads, writes, trims, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn only_what_succeeded_is_counted() {
        let host = Host::new(Disk::pattern(8192)).serve::<Count>(&[]).unwrap();
        let client = host.connect().unwrap();
        client.pread(5, 7).unwrap();
        client.pread(0, 100).unwrap();
        client.pwrite(1, b"xyz", CommandFlags::FUA).unwrap();
        client.trim(0, 4096, CommandFlags::empty()).unwrap();
        client.zero(4096, 512, CommandFlags::MAY_TRIM).unwrap();
        host.fail_next("pread", Errno::Eio);
        assert_eq!(client.pread(0, 1000), Err(Errno::Eio));
        host.fail_next("zero", Errno::Enospc);
        assert_eq!(client.zero(0, 1000, CommandFlags::empty()), Err(Errno::Enospc));
        drop(client);
        assert_eq!(host.stop().log, ["info: count bytes: read 107, written 3, zeroed 512, trimmed 4096"]);
    }
}
