//! The functions that the host offers, as the contract has them, and thin types over those that are used together.

use crate::bindings::host::rbdkit::filter as imports;

pub use imports::{clock, next, request, server};

/// Who is at the other end.
pub mod client {
    pub use super::imports::client::*;
}

/// Opening the layer below.
pub mod next_open {
    pub use super::imports::next_open::*;
}

/// What the operator named in a parameter.
pub mod files {
    pub use super::imports::files::*;

    /// [`holds`] of a parameter that is given at most once. A path that cannot be looked at does not hold.
    pub fn holds_now(param: &str) -> bool {
        holds(param, 0).unwrap_or(false)
    }
}

/// Lines in the server's log, marked with the filter's name.
pub mod log {
    pub use super::imports::log::*;
}

/// Data of the call being served.
pub mod buffer {
    pub use super::imports::buffer::*;

    /// The request's own data: to be filled by a read, filled by the client for a write.
    pub const PAYLOAD: u32 = 0;

    /// A further buffer; given back when it is dropped, and at the latest when the call ends.
    #[derive(Debug)]
    pub struct Buffer(u32);

    impl Buffer {
        /// `length` bytes, unfilled: they read as zero.
        ///
        /// # Errors
        /// `Enomem` if the call's allowance is used up, `Einval` for 0 or more than 64 MiB.
        pub fn new(length: u32) -> Result<Buffer, Errno> {
            alloc(length).map(Buffer)
        }

        /// The number by which the functions know it.
        pub fn id(&self) -> u32 {
            self.0
        }
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            free(self.0);
        }
    }
}

/// Range locks. They end with the call, however it ends.
pub mod locks {
    pub use super::imports::locks::*;

    /// A lock that is held. **Dropping it does not unlock**, for unlocking publishes what `maps` holds back: a call that fails with `?` must
    /// not. The host releases it at the end of the call; [`Held::release`] does it earlier.
    #[derive(Debug)]
    #[must_use = "the lock is held until the call ends"]
    pub struct Held(());

    impl Held {
        /// Waits for the lock.
        ///
        /// # Errors
        /// `Eshutdown` if the server stops, `Einval` for an empty range or one that overflows, `Edeadlk` for a second lock.
        pub fn new(scope: Scope, offset: u64, length: u64, mode: Mode) -> Result<Held, Errno> {
            lock(scope, offset, length, mode).map(|()| Held(()))
        }

        /// Publishes what `maps` holds back, and unlocks.
        pub fn release(self) {
            unlock();
        }
    }
}

/// Small shared numbers.
pub mod slots {
    pub use super::imports::slots::*;

    /// One slot.
    #[derive(Clone, Copy, Debug)]
    pub struct Slot {
        /// Whose.
        pub scope: Scope,
        /// 0 to 15.
        pub index: u32,
    }

    impl Slot {
        /// What is in it.
        pub fn get(self) -> Words {
            get(self.scope, self.index)
        }

        /// Replaces the words if nobody did since `old` was read.
        pub fn replace(self, old: Words, [a, b, c, d]: [u64; 4]) -> bool {
            replace(self.scope, self.index, old.version, a, b, c, d)
        }
    }
}

/// Shared maps of blocks.
pub mod maps {
    pub use super::imports::maps::*;

    /// One map.
    #[derive(Clone, Copy, Debug)]
    pub struct Map {
        /// Whose.
        pub scope: Scope,
        /// 0 to 7.
        pub id: u32,
    }

    impl Map {
        /// As many blocks of `block` bytes as cover `bytes`.
        pub fn resize(self, block: u32, bytes: u64) -> Result<(), Errno> {
            resize(self.scope, self.id, block, bytes)
        }

        /// The state of block `first`, and how many from there on (at most `limit`) have it.
        pub fn run(self, first: u64, limit: u64) -> Run {
            get_run(self.scope, self.id, first, limit)
        }

        /// The first block from `first` on in one of `states` (bit n for state n).
        pub fn find(self, first: u64, states: u8) -> Option<u64> {
            find(self.scope, self.id, first, states)
        }

        /// Sets those of `count` blocks that are in one of `states` to `to`, at once.
        pub fn set(self, first: u64, count: u64, states: u8, to: u8) -> u64 {
            set(self.scope, self.id, first, count, states, to, When::Now)
        }

        /// How many blocks are in `state`, which is not 0.
        pub fn count(self, state: u8) -> u64 {
            count(self.scope, self.id, state)
        }
    }
}

/// A temporary file in the host.
pub mod scratch {
    pub use super::imports::scratch::*;
}
