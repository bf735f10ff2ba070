//! Opens the layer below again when a request fails, and repeats the request.
//!
//! Many requests of a connection may fail of one cause at the same time: each waits for itself, the first one opens next anew, and the others
//! go on with what it opened (the host counts generations).
#![deny(unsafe_code)]

mod patience;

use patience::{Patience, Verdict};
use rbdkit_filter_sdk::prelude::*;

/// The filter.
pub struct Retry {
    patience: Patience,
    readonly: bool,
}

impl Retry {
    /// Serves a request that ends at `end`.
    fn serve<T>(&self, end: u64, operation: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        // Of the next that this call begins with.
        let generation = std::cell::Cell::new(next_open::generation());
        let reopen = || {
            let readonly = request::readonly() || self.readonly;
            match next_open::reopen(generation.get(), readonly, &request::exportname()) {
                Ok(now) => {
                    generation.set(now);
                    Ok(())
                }
                Err(error) => {
                    log::warn(&format!("opening the layer below again failed ({})", error.name()));
                    Err(error)
                }
            }
        };
        let operation = || {
            // What was opened again may be another disk.
            if next::get_size().is_ok_and(|size| size < end) {
                return Err(Verdict::Again(Errno::Eio));
            }
            operation().map_err(|error| match error {
                // Not a matter of the connection.
                Errno::Erofs | Errno::Enotsup | Errno::Eshutdown => Verdict::Final(error),
                _ => {
                    log::warn(&format!("a request failed ({})", error.name()));
                    Verdict::Again(error)
                }
            })
        };
        self.patience.run(operation, server::sleep, reopen)
    }
}

impl Filter for Retry {
    fn describe() -> Description {
        Description::new("retry", env!("CARGO_PKG_VERSION"), "opens the layer below again when a request fails")
            .help("By default a request is repeated 5 times, after 2, 4, 8, 16 and 32 seconds.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .param(Param::int("retries").default("5").help("How often a request is repeated."))
            .param(Param::duration("retry-delay").default("2").help("Waits before the first repetition."))
            .param(
                Param::bool("retry-exponential").default("true").help("Each wait is twice as long as the one before."),
            )
            .param(
                Param::bool("retry-readonly")
                    .default("false")
                    .help("What is opened again is opened read-only, for the rest of the connection."),
            )
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let patience = Patience {
            retries: params.int("retries")?.unwrap_or(5),
            delay: params.duration("retry-delay")?.unwrap_or(2_000_000_000),
            exponential: params.bool("retry-exponential")?.unwrap_or(true),
        };
        Ok(Retry { patience, readonly: params.bool("retry-readonly")?.unwrap_or(false) })
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
