//! Repeats a request that fails, without reopening the layer below.

mod repeat;

use std::time::Duration;

use rbdkit_filter_sdk::prelude::*;
use repeat::repeat;

params! {
    /// The parameters.
    pub struct Settings {
        /// How many times a request is repeated before it fails.
        #[param(check = within_maximum)]
        retry_request_retries: u64 = 2,
        /// Time to wait before each repetition.
        retry_request_delay: Duration = Duration::from_secs(2),
        /// Also repeat opening the layer below.
        retry_request_open: bool = true,
    }
}

/// The most repetitions, as in nbdkit.
const MAX_RETRIES: u64 = 1000;

fn within_maximum(retries: &u64) -> Result<(), String> {
    if *retries <= MAX_RETRIES { Ok(()) } else { Err(format!("must be at most {MAX_RETRIES}")) }
}

/// The filter.
pub struct RetryRequest {
    settings: Settings,
}

impl RetryRequest {
    /// Repeats whatever failed, whatever the error: next answers ESHUTDOWN, EROFS or ENOTSUP also
    /// while it is restarted or replaced.
    fn serve<T>(&self, operation: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        repeat(self.settings.retry_request_retries, operation, |error| {
            // Then nobody reads the answer, and it may be the cause.
            if request::cancelled() {
                return false;
            }
            warn!("a request failed ({})", error.name());
            server::sleep(self.settings.retry_request_delay.as_nanos() as u64).is_ok()
        })
    }
}

impl Filter for RetryRequest {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("retry-request", env!("CARGO_PKG_VERSION"), "repeats a request that fails")
            .help("The layer below stays open; the filter retry reopens it.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(RetryRequest { settings })
    }
}

impl Connection for RetryRequest {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        match self.settings.retry_request_open {
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
        // For fast zero ENOTSUP is an answer, and not a failure: the client writes zeroes instead.
        let fast = flags.contains(CommandFlags::FAST_ZERO);
        let answered = self.serve(|| match next::zero(offset, length, flags) {
            Err(Errno::Enotsup) if fast => Ok(Err(Errno::Enotsup)),
            result => result.map(Ok),
        });
        answered?
    }
}

impl Mapping for RetryRequest {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.serve(|| next::extents_forward_until(offset, length, u64::MAX, offset, flags))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_request_is_repeated_as_often_as_the_user_wants() {
        let words = ["retry-request-retries=2", "retry-request-delay=1ms"];
        let host = Host::new(Disk::pattern(512)).serve::<RetryRequest>(&words).unwrap();
        let client = host.connect().unwrap();
        for (faults, expected) in [(2, Ok(())), (3, Err(Errno::Enomem))] {
            (0..faults).for_each(|_| host.fail_next("flush", Errno::Enomem));
            assert_eq!(client.flush(), expected);
        }
        assert_eq!(host.time(), 4_000_000);
    }

    #[test]
    fn more_repetitions_than_nbdkit_allows_are_refused() {
        let refused = Host::new(Disk::pattern(512)).serve::<RetryRequest>(&["retry-request-retries=1001"]).err();
        let line = "retry-request: retry-request-retries=1001: must be at most 1000";
        assert_eq!(refused.as_deref(), Some(line));
    }
}
