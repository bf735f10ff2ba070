//! Reopens the layer below when a request fails, and repeats the request.
//!
//! One cause may make many requests of a connection fail at the same time. Each of them waits on
//! its own. The first one reopens next, and the others use what it opened: the host counts
//! generations.

mod policy;

use policy::{Failure, RetryPolicy};
use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Retry {
    policy: RetryPolicy,
    readonly: bool,
}

impl Retry {
    /// Serves a request whose range ends at `end`.
    fn serve<T>(&self, end: u64, operation: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
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
                    log::warn(&format!("reopening the layer below failed ({})", error.name()));
                    Err(error)
                }
            }
        };
        let operation = || {
            // The export may be smaller after reopening.
            if next::get_size().is_ok_and(|size| size < end) {
                return Err(Failure::Retryable(Errno::Eio));
            }
            operation().map_err(|error| match error {
                // The connection is not the cause of these errors.
                Errno::Erofs | Errno::Enotsup | Errno::Eshutdown => Failure::Permanent(error),
                _ => {
                    log::warn(&format!("a request failed ({})", error.name()));
                    Failure::Retryable(error)
                }
            })
        };
        self.policy.run(operation, server::sleep, reopen)
    }
}

impl Filter for Retry {
    fn describe() -> Description {
        Description::new("retry", env!("CARGO_PKG_VERSION"), "reopens the layer below when a request fails")
            .help("By default a request is repeated 5 times, after 2, 4, 8, 16 and 32 seconds.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .param(Param::int("retries").default("5").help("How many times a request is repeated before it fails."))
            .param(Param::duration("retry-delay").default("2").help("Time to wait before the first repetition."))
            .param(Param::bool("retry-exponential").default("true").help("Double the wait after each repetition."))
            .param(
                Param::bool("retry-readonly")
                    .default("false")
                    .help("Reopen the layer below read-only, for the rest of the connection."),
            )
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let policy = RetryPolicy {
            retries: params.int("retries")?.unwrap_or(5),
            delay: params.duration("retry-delay")?.unwrap_or(2_000_000_000),
            exponential: params.bool("retry-exponential")?.unwrap_or(true),
        };
        Ok(Retry { policy, readonly: params.bool("retry-readonly")?.unwrap_or(false) })
    }
}

impl Reads for Retry {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + u64::from(length), || next::pread(offset, length, PAYLOAD, 0))
    }
}

impl Writes for Retry {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + u64::from(length), || next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Flushes for Retry {
    fn flush(&self) -> Result<(), Errno> {
        self.serve(0, next::flush)
    }
}

impl Trims for Retry {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + length, || next::trim(offset, length, flags))
    }
}

impl Zeroes for Retry {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.serve(offset + length, || next::zero(offset, length, flags))
    }
}

impl Mapping for Retry {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.serve(offset + length, || next::extents_forward(offset, length, offset, flags))?;
        Ok(Vec::new())
    }
}

impl Caching for Retry {
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.serve(offset + length, || next::cache(offset, length))
    }
}

rbdkit_filter_sdk::export!(Retry: reads, writes, flushes, trims, zeroes, mapping, caching);
