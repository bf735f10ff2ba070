//! Repeats a request that fails, without reopening the layer below.

mod repeat;

use rbdkit_filter_sdk::prelude::*;
use repeat::repeat;

/// The filter.
pub struct RetryRequest {
    retries: u64,
    /// Nanoseconds.
    delay: u64,
    open: bool,
}

impl RetryRequest {
    fn serve<T>(&self, operation: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        repeat(self.retries, operation, |error| {
            // A repetition does not make a read-only export writable, or an operation supported.
            // After a shutdown nobody reads the answer.
            if matches!(error, Errno::Erofs | Errno::Enotsup | Errno::Eshutdown) {
                return false;
            }
            log::warn(&format!("a request failed ({})", error.name()));
            server::sleep(self.delay).is_ok()
        })
    }
}

impl Filter for RetryRequest {
    fn describe() -> Description {
        Description::new("retry-request", env!("CARGO_PKG_VERSION"), "repeats a request that fails")
            .help("The layer below stays open; the filter retry reopens it.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .param(
                Param::int("retry-request-retries")
                    .default("2")
                    .help("How many times a request is repeated before it fails."),
            )
            .param(Param::duration("retry-request-delay").default("2").help("Time to wait before each repetition."))
            .param(Param::bool("retry-request-open").default("true").help("Also repeat opening the layer below."))
    }

    fn configure(params: &Params) -> Result<Self, String> {
        Ok(RetryRequest {
            retries: params.int("retry-request-retries")?.unwrap_or(2),
            delay: params.duration("retry-request-delay")?.unwrap_or(2_000_000_000),
            open: params.bool("retry-request-open")?.unwrap_or(true),
        })
    }
}

impl Connection for RetryRequest {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        match self.open {
            true => self.serve(|| next_open::open(readonly, exportname))?,
            false => next_open::open(readonly, exportname)?,
        }
        Ok(0)
    }
}

impl Reads for RetryRequest {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.serve(|| next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for RetryRequest {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(|| next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for RetryRequest {
    fn flush(&self) -> Result<(), Errno> {
        self.serve(next::flush)
    }
}

impl Trims for RetryRequest {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(|| next::trim(offset, length, flags))
    }
}

impl Zeroes for RetryRequest {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(|| next::zero(offset, length, flags))
    }
}

impl Mapping for RetryRequest {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.serve(|| next::extents_forward(offset, length, offset, flags))?;
        Ok(Vec::new())
    }
}

impl Caching for RetryRequest {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.serve(|| next::cache(offset, length))
    }
}

rbdkit_filter_sdk::export!(
    RetryRequest: connection, reads, writes, flushes, trims, zeroes, mapping, caching
);
