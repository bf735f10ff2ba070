//! Reopens the layer below when a request fails, and repeats the request.
//!
//! One cause may make many requests of a connection fail at the same time. Each of them waits on
//! its own. The first one reopens next, and the others use what it opened: the host counts
//! generations.

mod policy;

use std::time::Duration;

use policy::{Failure, RetryPolicy};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// How many times a request is repeated before it fails.
        retries: u64 = 5,
        /// Time to wait before the first repetition.
        retry_delay: Duration = Duration::from_secs(2),
        /// Double the wait after each repetition.
        retry_exponential: bool = true,
        /// Reopen the layer below read-only, for the rest of the connection.
        retry_readonly: bool = false,
    }
}

/// The filter.
pub struct Retry {
    policy: RetryPolicy,
    readonly: bool,
}

/// What a request does, as far as repeating it depends on that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// It changes nothing.
    Reads,
    /// It changes the export.
    Writes,
    /// It zeroes a range, but only if that is fast.
    FastZeroes,
}

impl Retry {
    /// Serves a request whose range ends at `end`. Every failure is repeated, whatever the error:
    /// next answers ESHUTDOWN, EROFS or ENOTSUP also while it is restarted or replaced.
    fn serve<T>(&self, end: u64, access: Access, operation: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        // The generation of the next that this call starts with.
        let generation = std::cell::Cell::new(next_open::generation());
        let reopen = || {
            let readonly = request::readonly() || self.readonly;
            match next_open::reopen(generation.get(), readonly, &request::exportname()) {
                Ok(now) => {
                    generation.set(now);
                    Ok(())
                }
                Err(error) => {
                    warn!("reopening the layer below failed ({})", error.name());
                    Err(error)
                }
            }
        };
        let operation = || {
            if access != Access::Reads && self.readonly && generation.get() > 0 {
                // Next stays read-only, so a repetition cannot succeed.
                return Err(Failure::Permanent(Errno::Erofs));
            }
            // The export may be smaller after reopening.
            if next::get_size().is_ok_and(|size| size < end) {
                let error = if access == Access::Reads { Errno::Eio } else { Errno::Enospc };
                return Err(Failure::Retryable(error));
            }
            operation().map_err(|error| match error {
                // This is an answer, and not a failure: the client writes zeroes instead.
                Errno::Enotsup if access == Access::FastZeroes => Failure::Permanent(error),
                _ => failed("a request", error),
            })
        };
        self.policy.run(operation, server::sleep, reopen)
    }
}

/// Logs a failure, and decides whether to go on.
fn failed(what: &str, error: Errno) -> Failure<Errno> {
    // Then nobody reads the answer, and it may be the cause.
    if request::cancelled() {
        return Failure::Permanent(error);
    }
    warn!("{what} failed ({})", error.name());
    Failure::Retryable(error)
}

impl Filter for Retry {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("retry", env!("CARGO_PKG_VERSION"), "reopens the layer below when a request fails")
            .help("By default a request is repeated 5 times, after 2, 4, 8, 16 and 32 seconds.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let policy = RetryPolicy {
            retries: settings.retries,
            delay: settings.retry_delay.as_nanos() as u64,
            exponential: settings.retry_exponential,
        };
        Ok(Retry { policy, readonly: settings.retry_readonly })
    }
}

impl Connection for Retry {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        let readonly = std::cell::Cell::new(readonly);
        let operation =
            || next_open::open(readonly.get(), exportname).map_err(|error| failed("opening the layer below", error));
        let reopen = || {
            readonly.set(readonly.get() || self.readonly);
            Ok(())
        };
        self.policy.run(operation, server::sleep, reopen)?;
        Ok(0)
    }
}

impl Reads for Retry {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + u64::from(length), Access::Reads, || next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for Retry {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + u64::from(length), Access::Writes, || next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for Retry {
    fn flush(&self) -> Result<(), Errno> {
        self.serve(0, Access::Reads, next::flush)
    }
}

impl Trims for Retry {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + length, Access::Writes, || next::trim(offset, length, flags))
    }
}

impl Zeroes for Retry {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        let fast = flags.contains(CommandFlags::FAST_ZERO);
        let access = if fast { Access::FastZeroes } else { Access::Writes };
        self.serve(offset + length, access, || next::zero(offset, length, flags))
    }
}

impl Mapping for Retry {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.serve(offset + length, Access::Reads, || {
            next::extents_forward_until(offset, length, u64::MAX, offset, flags)
        })?;
        Ok(Vec::new())
    }
}

impl Caching for Retry {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.serve(offset + length, Access::Reads, || next::cache(offset, length))
    }
}

rbdkit_filter_sdk::export!(Retry: connection, reads, writes, flushes, trims, zeroes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_request_that_fails_is_repeated_after_reopening() {
        let words = ["retry-delay=1ms", "retry-readonly=yes"];
        let host = Host::new(Disk::pattern(512)).serve::<Retry>(&words).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        host.fail_next("pread", Errno::Eio);
        host.fail_next("open", Errno::Enoent);
        assert_eq!(client.pread(3, 2).unwrap(), host.disk()[3..5]);
        let calls = ["pread 3 2", "sleep 1000000", "open", "sleep 2000000", "open", "pread 3 2"];
        assert_eq!(host.take_calls(), calls);
        let log = ["warning: a request failed (eio)", "warning: reopening the layer below failed (enoent)"];
        assert_eq!(host.take_log(), log);
        assert_eq!(client.pwrite(0, b"x", CommandFlags::empty()), Err(Errno::Erofs));
    }
}
